"""A backend that only keeps books: tokens, physical pages, and who must not be in a step."""

from numbadsd.serving.plan import SchedulerConfig
from numbadsd.serving.request import Request
from numbadsd.serving.scheduler import Scheduler

MASK = 2**32 - 1


def prompt_token(request_id, position):
    """Return a prompt's token: a pure function of the request and the position."""
    return (request_id * 7919 + position * 104729 + 1) & MASK


def next_token(tokens):
    """Return the token that a context leads to: it depends on all of it, and on its order."""
    value = 17
    for token in tokens:
        value = (value * 31 + token) & MASK
    return value


def alone(request: Request) -> list[int]:
    """Return the tokens that a request makes when nobody else is there."""
    tokens = [prompt_token(request.request_id, i) for i in range(request.prompt_tokens)]
    for _ in range(request.new_tokens):
        tokens.append(next_token(tokens))
    return tokens[request.prompt_tokens :]


class FakeBackend:
    """Does what plans say, and asserts that they make sense."""

    def __init__(self, config: SchedulerConfig):
        self.config = config
        self.requests: dict[int, Request] = {}
        self.outputs: dict[int, list[int]] = {}
        self.caches: dict[int, list[int]] = {}
        self.complete_prompts: set[int] = set()
        self.pages: dict[int, list[int]] = {}
        self.free = list(range(config.capacity_pages or 600))  # more than any test needs
        self.num_pages = len(self.free)
        self.appended = 0

    def add(self, request):
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = []

    def release(self, ids):
        for request_id in ids:
            del self.caches[request_id]
            self.complete_prompts.discard(request_id)
            self.free += self.pages.pop(request_id)

    def append(self, request_id, tokens):
        """Append tokens; a pool that the budget protects never runs out."""
        cache, pages = self.caches[request_id], self.pages[request_id]
        cache += tokens
        self.appended += len(tokens)
        while len(pages) * self.config.page_size < len(cache):
            pages.append(self.free.pop())

    def prompt(self, request_id):
        """Return what is to be prefilled: the prompt and all that was made before."""
        count = self.requests[request_id].prompt_tokens
        return [prompt_token(request_id, i) for i in range(count)] + self.outputs[request_id]

    def run(self, plan):
        self.release(plan.dropped + plan.preempted)
        for request_id in plan.admitted:
            assert request_id not in self.caches
            self.caches[request_id], self.pages[request_id] = [], []
            if self.config.prefill == "none":
                self.append(request_id, self.prompt(request_id))
                self.complete_prompts.add(request_id)
        assert len({chunk.request_id for chunk in plan.chunks}) == len(plan.chunks)
        for request_id, start, count, is_last in plan.chunks:
            assert count >= 1 and request_id not in self.complete_prompts
            assert start == len(self.caches[request_id]), "chunks leave no gap"
            prompt = self.prompt(request_id)
            assert is_last == (start + count == len(prompt)) and start + count <= len(prompt)
            self.append(request_id, prompt[start : start + count])
            if is_last:
                self.complete_prompts.add(request_id)
        assert set(plan.decode) == self.complete_prompts, "all complete prompts decode, once"
        assert len(set(plan.decode)) == len(plan.decode)
        for request_id in plan.decode:
            token = next_token(self.caches[request_id])
            self.append(request_id, [token])
            self.outputs[request_id].append(token)
        self.check_pages()

    def check_pages(self):
        """Every page is free or has one owner."""
        owned = [page for pages in self.pages.values() for page in pages]
        assert sorted(owned + self.free) == list(range(self.num_pages))


def run_to_end(config, requests, on_step=None):
    """Serve requests by logical steps; returns scheduler, backend, plans and reasons."""
    scheduler, backend = Scheduler(config), FakeBackend(config)
    pending = sorted(requests, key=lambda r: (r.arrival, r.request_id))[::-1]
    plans, reasons, step = [], {}, 0
    while pending or scheduler.has_work:
        if not scheduler.has_work:
            step = max(step, pending[-1].arrival)
        while pending and pending[-1].arrival <= step:
            request = pending.pop()
            backend.add(request)
            reasons[request.request_id] = scheduler.add(request)
        if not scheduler.has_work:
            continue
        plan = scheduler.plan()
        backend.run(plan)
        if on_step is not None:
            on_step(scheduler, backend, plan)
        backend.release(scheduler.complete(plan))
        plans.append(plan)
        step += 1
    return scheduler, backend, plans, {i: r for i, r in reasons.items() if r is not None}
