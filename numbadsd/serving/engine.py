"""Engine: asks the scheduler what to do, lets a backend do it, and keeps the time."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter_ns

import numpy as np

from numbadsd.errors import EngineError
from numbadsd.serving.backend import Backend
from numbadsd.serving.clock import Clock
from numbadsd.serving.metrics import ServingLog
from numbadsd.serving.plan import Chunk, StepPlan
from numbadsd.serving.request import Request
from numbadsd.serving.scheduler import Scheduler
from numbadsd.serving.stats import RunStats
from numbadsd.serving.timeline import Timeline


class Engine:
    """Runs requests to their ends.

    Parameters
    ----------
    scheduler : Scheduler
        With no requests yet; where it plans no prefill, prompts are written without attending.
    backend : Backend
        Does what the scheduler plans.
    clock : Clock
        What arrivals are compared with.
    lazy_release : bool
        Free the pages of finished requests when the next one is admitted, or at the end.
    timeline : Timeline, optional
        Gets every step.
    on_step : callable, optional
        Called with the number of tokens that a step made.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        clock: Clock,
        *,
        lazy_release: bool = False,
        timeline: Timeline | None = None,
        on_step: Callable[[int], None] | None = None,
    ):
        self.scheduler, self.backend, self.clock = scheduler, backend, clock
        self.log, self.stats = ServingLog(), RunStats()
        self._prefill = scheduler.config.prefill
        self._lazy_release = lazy_release
        self._timeline, self._on_step = timeline, on_step
        self._requests: dict[int, Request] = {}
        self._prewritten: set[int] = set()
        self._unreleased: list[int] = []
        self._prewritten_pages = self._unreleased_pages = 0  # which the budget does not count
        self._batch: tuple[int, ...] = ()
        self._positions = np.empty(0, np.int64)
        self._offsets: dict[int, int] = {}  # position of a request's next token, less the step
        self._num_stops = 0
        self._lap_ns = 0

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._num_stops > 0

    # ---- around a run

    def preadmit(self, requests: Sequence[Request]) -> None:
        """Write the prompts of all requests before the run; they hold their pages from now on."""
        for request in requests:
            pages = self.scheduler.budget.pages_for(request.total_tokens)
            chunk = Chunk(request.request_id, 0, request.prompt_tokens, True)
            self._prewritten.add(request.request_id)
            try:
                self.backend.reserve(request.request_id, pages)
                self.backend.write_prompts([chunk], lambda stage: None)
            except Exception as error:
                self.backend.release(tuple(self._prewritten))  # nothing is held then
                raise EngineError(0, error, 0, len(requests)) from error
            self._prewritten_pages += pages

    def stop(self) -> None:
        """Finish what is active, start nothing more; again: end that. For signal handlers, too."""
        self._num_stops += 1

    def cancel(self, request_id: int) -> bool:
        """End a request that has arrived; False when it has ended already."""
        is_cancelled = self.scheduler.cancel(request_id)
        if is_cancelled:
            self.log.on_cancel((request_id,), self.clock.time_s())
        return is_cancelled

    def run(self, requests: Sequence[Request]) -> RunStats:
        """Run requests, in order of arrival, until all have ended.

        Raises
        ------
        EngineError
            When the backend failed; it says what was lost, and `stats` and `log` have what was
            done before.
        """
        start_ns = self._lap_ns = perf_counter_ns()
        arrived = 0
        try:
            while True:
                now = self.clock.now()
                while arrived < len(requests) and requests[arrived].arrival <= now:
                    self._take(requests[arrived])
                    arrived += 1
                if self._num_stops:
                    arrived = self._drop_the_rest(requests, arrived)
                if self.scheduler.has_work:
                    self._step()
                elif arrived < len(requests):
                    self._wait_for(requests[arrived])
                else:
                    self._settle()
                    break
        finally:
            self._release_late()
            self.backend.release(tuple(self._prewritten))  # of those that were never started
            self.stats.total_ns = perf_counter_ns() - start_ns
        return self.stats

    def _take(self, request: Request) -> None:
        self._requests[request.request_id] = request
        arrival_s = self.clock.arrival_time_s(request)
        self.log.on_arrival(request.request_id, arrival_s, request.prompt_tokens)
        reason = self.scheduler.add(request)
        if reason is not None:
            self.log.on_reject(request.request_id, reason)

    def _drop_the_rest(self, requests: Sequence[Request], arrived: int) -> int:
        """Cancel who waits, after a second stop all; count who has not arrived."""
        ending = self._requests if self._num_stops > 1 else self.scheduler.waiting_ids()
        for request_id in ending:
            self.cancel(request_id)
        self.stats.not_started += len(requests) - arrived
        return len(requests)

    def _wait_for(self, request: Request) -> None:
        self._lap("schedule")
        with suppress(InterruptedError):  # the clock's sleep was told of a stop
            self.clock.wait_until(request.arrival)
        self._lap("idle")

    def _settle(self) -> None:
        """Wait for what the backend still does of the last steps."""
        try:
            self.backend.wait()
        except Exception as error:
            raise EngineError(self.stats.num_steps, error, 0, 0) from error
        self._lap("decode")

    # ---- a step

    def _lap(self, stage: str) -> None:
        """End a stage: the time since the last one is its."""
        now = perf_counter_ns()
        self.stats.stages_ns[stage] += now - self._lap_ns
        self._lap_ns = now

    def _step(self) -> None:
        began_ns, began_s = self._lap_ns, self.clock.time_s()
        before = dict(self.stats.stages_ns) if self._timeline is not None else None
        plan = self.scheduler.plan()
        self._lap("schedule")
        try:
            self._do(plan, began_s)
        except Exception as error:
            self._fail(plan, error)
        used_pages = self.scheduler.budget.used_pages
        self._note_pages(plan, used_pages + self._prewritten_pages + self._unreleased_pages)
        finished = self.scheduler.complete(plan)
        self._lap("schedule")
        if self._lazy_release:
            self._unreleased += finished
            self._unreleased_pages += used_pages - self.scheduler.budget.used_pages
        elif finished:
            self.backend.release(finished)
        self._lap("release")
        duration_ns = self._lap_ns - began_ns
        self.clock.after_step(duration_ns * 1e-9)
        self._note(plan, finished, duration_ns)
        if before is not None:
            self._draw(plan, began_s, before)

    def _do(self, plan: StepPlan, began_s: float) -> None:
        gone = (*plan.dropped, *plan.preempted)
        if gone:
            self.backend.release(gone)
            self.log.on_preempt(plan.preempted)
        if plan.admitted and self._unreleased:
            self._release_late()
        self._lap("release")
        for request_id in plan.admitted:
            self.log.on_admit(request_id, began_s)
        chunks = self._admit(plan)
        if chunks:
            self._prefill_chunks(chunks)
        if plan.decode:
            self.backend.decode(plan.decode, self._positions_of(plan.decode), self._lap)
            self._positions += 1

    def _admit(self, plan: StepPlan) -> Sequence[Chunk]:
        """Make room for new requests; return the prompt tokens of this step."""
        for request_id in plan.admitted:
            pages = self.scheduler.budget.held_pages(request_id)
            if request_id in self._prewritten:
                self._prewritten_pages -= pages
            else:
                self.backend.reserve(request_id, pages)
        if plan.admitted:
            self._lap("admission")
        if self._prefill != "none":
            return plan.chunks
        return [
            Chunk(request_id, 0, self._tokens_so_far(request_id), True)
            for request_id in plan.admitted
            if request_id not in self._prewritten
        ]

    def _prefill_chunks(self, chunks: Sequence[Chunk]) -> None:
        self.stats.prompt_tokens += sum(chunk.count for chunk in chunks)
        self.backend.write_prompts(chunks, self._lap)
        if self._prefill == "packed":
            self.backend.attend_prompts(chunks, self._lap)
        elif self._prefill != "none":
            for chunk in chunks:
                self.backend.attend_prompts([chunk], self._lap)

    def _positions_of(self, batch: tuple[int, ...]) -> np.ndarray:
        """Return the position of each request's next token, [B] int64.

        Who decodes does so in every step: its position follows from the step in which it began.
        """
        step = self.stats.num_steps
        if batch is not self._batch:
            known = self._offsets
            for request_id in set(batch).difference(self._batch):
                known[request_id] = self._tokens_so_far(request_id) - step
            self._batch = batch
            offsets = np.fromiter(map(known.__getitem__, batch), np.int64, len(batch))
            self._positions = offsets + step
        return self._positions

    def _tokens_so_far(self, request_id: int) -> int:
        """Return a request's prompt and what it has made: its prompt after a preemption."""
        return self._requests[request_id].prompt_tokens + self.scheduler.generated(request_id)

    def _release_late(self) -> None:
        if self._unreleased:
            self.backend.release(self._unreleased)
            self._unreleased, self._unreleased_pages = [], 0

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        """End all active requests, free what they held, and say what was lost."""
        time_s = self.clock.time_s()
        failed = self.scheduler.fail_active()
        self.log.on_fail(failed, time_s)
        self.backend.release((*failed, *plan.dropped, *plan.preempted))
        waiting = self.scheduler.waiting_ids()
        for request_id in waiting:
            self.cancel(request_id)
        if self.scheduler.has_work:  # cancelled while the step was being done
            late = self.scheduler.plan()
            self.backend.release(late.dropped)
            self.scheduler.complete(late)
        raise EngineError(plan.number, error, len(failed), len(waiting)) from error

    def _note_pages(self, plan: StepPlan, held_pages: int) -> None:
        """Count the pages of a step, in which those who finish with it still hold theirs."""
        self.stats.peak_pages = max(self.stats.peak_pages, held_pages)
        if plan.decode:
            self.stats.page_steps += held_pages

    def _note(self, plan: StepPlan, finished: tuple[int, ...], duration_ns: int) -> None:
        stats, time_s = self.stats, self.clock.time_s()
        stats.num_steps += 1
        if plan.decode:
            stats.step_ns.append(duration_ns)
            stats.generated_tokens += len(plan.decode)
            stats.active_steps += len(plan.decode)
            self.log.on_tokens(plan.decode, time_s)
        if finished:
            self.log.on_finish(finished, time_s)
        if self._on_step is not None:
            self._on_step(len(plan.decode))

    def _draw(self, plan: StepPlan, began_s: float, before: dict[str, int]) -> None:
        stages = {
            name: (spent - before[name]) * 1e-9 for name, spent in self.stats.stages_ns.items()
        }
        scheduler = self.scheduler
        counts = {"active": scheduler.num_active, "waiting": scheduler.num_waiting,
                  "decoding": len(plan.decode), "pages": scheduler.budget.used_pages}  # fmt: skip
        self._timeline.add_step(plan.number, began_s, stages, counts)
