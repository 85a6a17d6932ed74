"""Scheduler: what each step does, for which requests; it knows no arrays and no clock."""

from collections import defaultdict

from numbadsd.config import check
from numbadsd.errors import SchedulerStuck
from numbadsd.serving.admission import WaitingQueue
from numbadsd.serving.budget import KvBudget
from numbadsd.serving.plan import Chunk, DecodeBatch, SchedulerConfig, StepPlan
from numbadsd.serving.request import Progress, Request, State

WAITING, PREFILL, DECODE = State.WAITING, State.PREFILL, State.DECODE


class Scheduler:
    """Chooses what each step does: `plan`, do it, `complete`, until there is no work.

    A step costs what changes in it, not what is active: when a request will finish, and when it
    will need a page, is known once it decodes, and is written down under the step's number.

    Parameters
    ----------
    config : SchedulerConfig
        How requests are admitted and prefilled.

    Attributes
    ----------
    budget : KvBudget
        Who holds how many pages.
    preemptions : int
        How often a request was preempted.
    recomputed_tokens : int
        Tokens that preemptions threw away and that later admissions bring back.
    """

    def __init__(self, config: SchedulerConfig):
        self.config = config
        self.budget = KvBudget(config.capacity_pages, config.page_size)
        self.preemptions = 0
        self.recomputed_tokens = 0
        self._requests: dict[int, Progress] = {}
        self._queue = WaitingQueue(config.admission, config.look_ahead, config.fifo_every)
        # both in admission order: a dict keeps the order of its insertions
        self._active: dict[int, Progress] = {}
        self._prefilling: dict[int, Progress] = {}
        self._decoding = DecodeBatch()
        self._cancelled: list[Progress] = []  # were active; the next plan drops them
        # step -> (order, request); those who are gone, or were admitted anew, are skipped
        self._finishing: dict[int, list[tuple[int, Progress]]] = defaultdict(list)
        self._growing: dict[int, list[tuple[int, Progress]]] = defaultdict(list)
        self._in_flight: StepPlan | None = None
        self._num_steps = 0
        self._num_admissions = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or is active, or a cancelled one still holds its pages."""
        return bool(self._active or self._queue or self._cancelled)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def num_active(self) -> int:
        """Requests in prefill or decode."""
        return len(self._active)

    def waiting_ids(self) -> tuple[int, ...]:
        """Return who waits, the head of the queue first."""
        return self._queue.ids()

    def state_of(self, request_id: int) -> State:
        """Return where a request is; one whose last chunk is planned decodes already."""
        return self._known(request_id).state

    def generated(self, request_id: int) -> int:
        """Return the tokens that a request made in completed steps."""
        return self._known(request_id).generated(self._num_steps)

    def context_tokens(self, request_id: int) -> int:
        """Return the tokens in a request's cache after the completed steps; at its end, the last.

        0 for a request that waits, also when it has made tokens before it was preempted.
        """
        return self._known(request_id).context(self._num_steps)

    def add(self, request: Request) -> str | None:
        """Queue a request; returns the reason when it is rejected because it can never fit."""
        known = request.request_id in self._requests
        check(not known, "request_id", request.request_id, "one that was not added before")
        progress = self._requests[request.request_id] = Progress(request)
        pages = self.budget.pages_for(request.total_tokens)
        if self.budget.could_ever_hold(pages):
            self._queue.push(progress)
            return None
        progress.state = State.REJECTED
        return (
            f"request {request.request_id} needs {pages} pages for {request.total_tokens} tokens, "
            f"the KV budget has {self.budget.capacity_pages}"
        )

    def cancel(self, request_id: int) -> bool:
        """End a request; False when it has ended already.

        An active one leaves at once, but holds its pages until the next plan drops it: a step that
        is being done may use them.
        """
        progress = self._known(request_id)
        if progress.state.is_end:
            return False
        if progress.state is WAITING:
            self._queue.remove(request_id)
        else:
            self._deactivate(progress)
            self._cancelled.append(progress)
        progress.state = State.CANCELLED
        return True

    def plan(self) -> StepPlan:
        """Return what the next step does; complete it, or fail it, before planning another."""
        if self._in_flight is not None:
            raise RuntimeError(f"step {self._in_flight.number} is planned and not completed")
        dropped = self._drop_cancelled() if self._cancelled else ()
        preempted = self._grow() if self.config.preempt else ()
        # whoever came in now would take the pages that were just missing
        admitted = self._admit() if self._queue and not preempted else []
        chunks = self._next_chunks(admitted) if admitted or self._prefilling else ()
        decode = self._decoding.ids()
        if not (decode or chunks) and (self._queue or self._active):
            raise SchedulerStuck(
                self._num_steps, self.num_waiting, self.num_active, self.budget.free_pages
            )
        ids = tuple([progress.request_id for progress in admitted])
        self._in_flight = StepPlan(self._num_steps, dropped, preempted, ids, chunks, decode)
        return self._in_flight

    def complete(self, plan: StepPlan) -> tuple[int, ...]:
        """Take note that a step was done; returns who finished, in admission order.

        Their budget is free from now on; the backend must release them before the next step.
        """
        if plan is not self._in_flight:
            raise ValueError(f"plan: got step {plan.number}, want the one that was planned last")
        self._in_flight = None
        self._num_steps += 1
        for chunk in plan.chunks:
            self._requests[chunk.request_id].prefilled_tokens += chunk.count
        if self.config.prefill == "none":
            for request_id in plan.admitted:
                progress = self._requests[request_id]
                progress.prefilled_tokens = progress.prompt_tokens
        finished = []
        for order, progress in sorted(self._finishing.pop(plan.number, ())):
            if progress.order == order and progress.state is DECODE:
                self._end(progress, State.FINISHED)
                finished.append(progress.request_id)
        return tuple(finished)

    def fail_active(self) -> tuple[int, ...]:
        """End all active requests because a step failed; returns them, in admission order.

        The backend must release them, and what the failed plan dropped or preempted if it has not
        yet; those who wait still do. The next plan may drop one that was cancelled meanwhile and
        that the failed step never got to admit.
        """
        self._in_flight = None
        failed = list(self._active.values())
        for progress in failed:
            self._end(progress, State.FAILED)
        return tuple([progress.request_id for progress in failed])

    def _known(self, request_id: int) -> Progress:
        progress = self._requests.get(request_id)
        check(progress is not None, "request_id", request_id, "one that was added")
        return progress

    def _deactivate(self, progress: Progress) -> None:
        """Take a request out of the batch; its pages and its numbers stay."""
        del self._active[progress.request_id]
        if progress.state is DECODE:
            self._decoding.remove(progress)
        else:
            del self._prefilling[progress.request_id]

    def _release(self, progress: Progress) -> None:
        progress.stop_decoding(self._num_steps)
        self.budget.release(progress.request_id)
        self._queue.pages_came_free()

    def _end(self, progress: Progress, state: State) -> None:
        self._deactivate(progress)
        self._release(progress)
        progress.state = state

    def _drop_cancelled(self) -> tuple[int, ...]:
        dropped, self._cancelled = self._cancelled, []
        for progress in dropped:
            self._release(progress)
        return tuple([progress.request_id for progress in dropped])

    def _grow(self) -> tuple[int, ...]:
        """Get the pages that this step's tokens begin; returns the victims.

        A victim is the youngest active request, at worst the one that grows; in which order they
        grow makes no difference to who it is. The oldest is never one: alone it fits, `add` saw to
        that. So it finishes, and then another one is the oldest.
        """
        preempted = []
        for order, progress in self._growing.pop(self._num_steps, ()):
            if progress.order != order or progress.state is not DECODE:
                continue
            while not self.budget.grow(progress.request_id, 1):
                assert len(self._active) > 1, "a request that is alone does not fit"
                victim = self._active[next(reversed(self._active))]
                self._preempt(victim)
                preempted.append(victim.request_id)
                if victim is progress:
                    break
            else:
                self._growing[self._num_steps + self.config.page_size].append((order, progress))
        return tuple(preempted)

    def _preempt(self, progress: Progress) -> None:
        """Throw a request's tokens away; the next victim is older, and so queues before it."""
        progress.lost_tokens = progress.context(self._num_steps)
        self._end(progress, WAITING)
        progress.base_tokens = progress.made_tokens
        progress.prefilled_tokens = 0
        self._queue.push_front(progress)
        self.preemptions += 1

    def _admit(self) -> list[Progress]:
        admitted = self._queue.take(self.config.max_active - len(self._active), self._reserve)
        for progress in admitted:
            progress.order = self._num_admissions
            self._num_admissions += 1
            self.recomputed_tokens += progress.lost_tokens  # 0 at the first admission
            progress.state = PREFILL
            self._active[progress.request_id] = self._prefilling[progress.request_id] = progress
        return admitted

    def _reserve(self, progress: Progress) -> bool:
        tokens = progress.request.total_tokens
        if self.config.preempt:
            tokens = progress.prompt_tokens + 1
        return self.budget.reserve(progress.request_id, self.budget.pages_for(tokens))

    def _next_chunks(self, admitted: list[Progress]) -> tuple[Chunk, ...]:
        """Return what is prefilled now, and let those decode whose prompt is then complete."""
        if self.config.prefill in ("none", "blocking"):
            for progress in admitted:
                self._start_decode(progress)
            if self.config.prefill == "none":
                return ()
            return tuple([Chunk(p.request_id, 0, p.prompt_tokens, True) for p in admitted])
        left = self.config.prefill_chunk_tokens
        share = max(1, left // len(self._prefilling))
        chunks, complete = [], []
        for progress in self._prefilling.values():
            missing = progress.prompt_tokens - progress.prefilled_tokens
            count = min(share, missing)
            is_last = count == missing
            chunks.append(Chunk(progress.request_id, progress.prefilled_tokens, count, is_last))
            if is_last:
                complete.append(progress)
            left -= count
            if not left:
                break
        for progress in complete:
            self._start_decode(progress)
        return tuple(chunks)

    def _start_decode(self, progress: Progress) -> None:
        """Let a request decode in this step, and write down what will become of it."""
        del self._prefilling[progress.request_id]
        progress.state = DECODE
        progress.first_decode = now = self._num_steps
        self._decoding.add(progress)
        entry = (progress.order, progress)
        missing = progress.request.new_tokens - progress.made_tokens
        self._finishing[now + missing - 1].append(entry)
        if self.config.preempt:
            # it holds pages for one token after its prompt; the next page begins with the first
            # later token at a multiple of the page size
            page_size = self.config.page_size
            steps = -progress.prompt_tokens % page_size or page_size
            self._growing[now + steps].append(entry)
