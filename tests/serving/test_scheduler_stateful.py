"""Scheduler against the plain one and a fake backend, over random operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from numbadsd.serving.request import Request, State
from numbadsd.serving.scheduler import Scheduler
from tests.serving.backend import FakeBackend, alone
from tests.serving.model import ModelScheduler
from tests.serving.strategies import configs, lengths

has_plan = precondition(lambda self: self.plan is not None)
has_no_plan = precondition(lambda self: self.plan is None)


class SchedulerMachine(RuleBasedStateMachine):
    """plan: the one that is being done; gone: tokens of caches that were released."""

    @initialize(config=configs)
    def start(self, config):
        self.config = config
        self.scheduler, self.model = Scheduler(config), ModelScheduler(config)
        self.backend = FakeBackend(config)
        self.plan, self.last_decode, self.num_requests = None, (), 0

    @rule(rows=st.lists(lengths, min_size=1, max_size=4))
    def add(self, rows):
        for prompt_tokens, new_tokens in rows:
            request = Request(self.num_requests, 0.0, prompt_tokens, new_tokens)
            self.num_requests += 1
            self.backend.add(request)
            reason = self.scheduler.add(request)
            assert (reason is not None) == self.model.add(request)
            with pytest.raises(ValueError, match="request_id: got"):
                self.scheduler.add(request)

    @has_no_plan
    @rule()
    def make_plan(self):
        self.plan = self.scheduler.plan()
        assert self.plan == self.model.plan()
        if self.plan.decode == self.last_decode:
            assert self.plan.decode is self.last_decode or not self.plan.decode
        self.last_decode = self.plan.decode
        assert not (self.plan.preempted and self.plan.admitted)
        assert sum(c.count for c in self.plan.chunks) <= self.config.prefill_chunk_tokens or (
            self.config.prefill == "blocking"
        )
        with pytest.raises(RuntimeError, match="not completed"):
            self.scheduler.plan()

    @has_plan
    @rule()
    def complete(self):
        plan, self.plan = self.plan, None
        self.backend.run(plan)
        finished = self.scheduler.complete(plan)
        assert finished == self.model.complete(plan)
        self.backend.release(finished)
        with pytest.raises(ValueError, match="plan: got step"):
            self.scheduler.complete(plan)

    @has_no_plan
    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.make_plan()
            self.complete()

    @precondition(lambda self: self.num_requests > 0)
    @rule(data=st.data())
    def cancel(self, data):
        request_id = data.draw(st.integers(0, self.num_requests - 1))
        assert self.scheduler.cancel(request_id) == self.model.cancel(request_id)
        assert self.scheduler.cancel(request_id) is False

    @rule()
    def fail(self):
        """A step fails before it did anything but its releases; or somebody stops the run."""
        if self.plan is not None:
            self.backend.release(self.plan.dropped + self.plan.preempted)
        self.plan = None
        failed = self.scheduler.fail_active()
        assert failed == self.model.fail_active()
        self.backend.release([i for i in failed if i in self.backend.caches])
        # cancelled while the step was planned that would have admitted them: nothing to release
        for job in self.model.cancelled:
            if job.id not in self.backend.caches:
                self.backend.caches[job.id], self.backend.pages[job.id] = [], []

    @invariant()
    def books_agree(self):
        scheduler, model, budget = self.scheduler, self.model, self.scheduler.budget
        assert scheduler.has_work == model.has_work
        assert scheduler.num_waiting == len(model.waiting)
        assert scheduler.num_active == len(model.active) <= self.config.max_active
        assert scheduler.preemptions == model.preemptions
        assert scheduler.recomputed_tokens == model.recomputed_tokens
        for request_id, job in model.jobs.items():
            assert scheduler.state_of(request_id) == job.state
            assert scheduler.generated(request_id) == job.made
            assert scheduler.context_tokens(request_id) == job.cached
            assert budget.held_pages(request_id) == job.pages
        assert budget.used_pages == model.used_pages <= budget.peak_pages
        if self.config.capacity_pages is not None:
            assert budget.free_pages + budget.used_pages == self.config.capacity_pages
            assert 0 <= budget.free_pages and budget.peak_pages <= self.config.capacity_pages

    @invariant()
    def nobody_uses_more_pages_than_it_holds(self):
        if self.plan is None:
            for request_id, pages in self.backend.pages.items():
                assert len(pages) <= self.scheduler.budget.held_pages(request_id)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        if self.plan is not None:
            self.complete()
        while self.scheduler.has_work:
            self.step(1)
            self.books_agree()
        assert self.scheduler.budget.used_pages == 0
        assert not self.backend.caches and len(self.backend.free) == self.backend.num_pages
        for request_id, request in self.backend.requests.items():
            state, output = self.scheduler.state_of(request_id), self.backend.outputs[request_id]
            assert state.is_end
            assert self.scheduler.generated(request_id) == len(output)
            assert output == alone(request)[: len(output)]
            assert state is not State.FINISHED or len(output) == request.new_tokens


SchedulerMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40)
TestSchedulerMachine = SchedulerMachine.TestCase
