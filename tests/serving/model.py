"""The scheduler again, slow and plain: every step looks at every request."""

from dataclasses import dataclass

from numbadsd.serving.plan import Chunk, SchedulerConfig, StepPlan
from numbadsd.serving.request import Request


@dataclass(eq=False)
class Job:
    """A request, and all that changes about it."""

    request: Request
    state: str = "waiting"
    made: int = 0
    prompt: int = 0  # to prefill, since the last admission
    cached: int = 0  # tokens in the cache
    pages: int = 0
    lost: int = 0

    @property
    def id(self):
        return self.request.request_id


class ModelScheduler:
    """waiting: in order of the queue; active: in order of admission; cancelled: hold pages yet."""

    def __init__(self, config: SchedulerConfig):
        self.config = config
        self.jobs, self.waiting, self.active, self.cancelled = {}, [], [], []
        self.number = self.rounds = self.preemptions = self.recomputed_tokens = 0

    def pages_for(self, tokens):
        return (tokens + self.config.page_size - 1) // self.config.page_size

    @property
    def used_pages(self):
        return sum(job.pages for job in self.jobs.values())

    @property
    def has_work(self):
        return bool(self.waiting or self.active or self.cancelled)

    def fits(self, pages):
        capacity = self.config.capacity_pages
        return capacity is None or self.used_pages + pages <= capacity

    def add(self, request):
        job = self.jobs[request.request_id] = Job(request)
        capacity = self.config.capacity_pages
        if capacity is not None and self.pages_for(request.total_tokens) > capacity:
            job.state = "rejected"
        else:
            self.waiting.append(job)
        return job.state == "rejected"

    def cancel(self, request_id):
        job = self.jobs[request_id]
        if job in self.waiting:
            self.waiting.remove(job)
        elif job in self.active:
            self.active.remove(job)
            self.cancelled.append(job)
        else:
            return False
        job.state = "cancelled"
        return True

    def plan(self):
        dropped = self.cancelled
        self.cancelled = []
        for job in dropped:
            job.pages = 0
        preempted = self.grow() if self.config.preempt else []
        admitted = [] if preempted else self.admit()
        chunks = self.chunk(admitted)
        decode = [job for job in self.active if job.state == "decode"]
        lists = [tuple(job.id for job in jobs) for jobs in (dropped, preempted, admitted)]
        return StepPlan(self.number, *lists, tuple(chunks), tuple(job.id for job in decode))

    def grow(self):
        preempted = []
        for job in list(self.active):
            while job in self.active and job.state == "decode":
                missing = self.pages_for(job.cached + 1) - job.pages
                if self.fits(missing):
                    job.pages += missing
                    break
                victim = self.active.pop()
                assert self.active, "the oldest is preempted"
                victim.state, victim.pages = "waiting", 0
                victim.lost, victim.cached = victim.cached, 0
                self.waiting.insert(0, victim)
                self.preemptions += 1
                preempted.append(victim)
        return preempted

    def admit(self):
        in_order = self.config.admission == "fifo"
        in_order = in_order or self.rounds % self.config.fifo_every == self.config.fifo_every - 1
        window = list(self.waiting)
        if not in_order:
            window = window[: self.config.look_ahead]
            window.sort(key=lambda job: job.request.total_tokens)
        admitted = []
        for job in window:
            prompt = job.request.prompt_tokens + job.made
            tokens = prompt + 1 if self.config.preempt else job.request.total_tokens
            if len(self.active) == self.config.max_active:
                break
            if self.fits(self.pages_for(tokens)):
                job.pages, job.prompt, job.state = self.pages_for(tokens), prompt, "prefill"
                self.recomputed_tokens += job.lost
                job.lost = 0
                self.waiting.remove(job)
                self.active.append(job)
                admitted.append(job)
            elif in_order:
                break
        self.rounds += bool(admitted)
        return admitted

    def chunk(self, admitted):
        if self.config.prefill in ("none", "blocking"):
            for job in admitted:
                job.state = "decode"
            if self.config.prefill == "none":
                return []
            return [Chunk(job.id, 0, job.prompt, True) for job in admitted]
        budget, chunks = self.config.prefill_chunk_tokens, []
        jobs = [job for job in self.active if job.state == "prefill"]
        for job in jobs:
            share = max(1, self.config.prefill_chunk_tokens // len(jobs))
            count = min(share, job.prompt - job.cached, budget)
            if count:
                budget -= count
                is_last = job.cached + count == job.prompt
                chunks.append(Chunk(job.id, job.cached, count, is_last))
                job.state = "decode" if is_last else "prefill"
        return chunks

    def complete(self, plan):
        self.number += 1
        for chunk in plan.chunks:
            self.jobs[chunk.request_id].cached += chunk.count
        if self.config.prefill == "none":
            for request_id in plan.admitted:
                self.jobs[request_id].cached = self.jobs[request_id].prompt
        finished = []
        for request_id in plan.decode:
            job = self.jobs[request_id]
            job.made += 1
            job.cached += 1
            if job.made == job.request.new_tokens and job.state == "decode":
                finished.append(job)
                self.active.remove(job)
                job.state, job.pages = "finished", 0
        return tuple(job.id for job in finished)

    def fail_active(self):
        failed, self.active = self.active, []
        for job in failed:
            job.state, job.pages = "failed", 0
        return tuple(job.id for job in failed)
