"""Scheduler: hand-made cases of each rule."""

import numpy as np
import pytest

from numbadsd.errors import SchedulerStuck
from numbadsd.serving.plan import Chunk
from numbadsd.serving.request import Request, State
from numbadsd.serving.scheduler import Scheduler, SchedulerConfig, StepPlan


def make_scheduler(*lengths, **options):
    """Return a scheduler with requests 0, 1, ... of (prompt, new) tokens; pages of 4."""
    scheduler = Scheduler(SchedulerConfig(**{"page_size": 4} | options))
    for request_id, (prompt_tokens, new_tokens) in enumerate(lengths):
        scheduler.add(Request(request_id, 0.0, prompt_tokens, new_tokens))
    return scheduler


def steps(scheduler, count):
    """Return the plans of so many steps."""
    plans = []
    for _ in range(count):
        plans.append(scheduler.plan())
        scheduler.complete(plans[-1])
    return plans


def drain(scheduler):
    """Return the plans of all steps that are left."""
    plans = []
    while scheduler.has_work:
        plans += steps(scheduler, 1)
    return plans


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_active", 0),
        ("page_size", 0),
        ("capacity_pages", 0),
        ("prefill", "some"),
        ("prefill_chunk_tokens", 0),
        ("admission", "lifo"),
        ("look_ahead", 0),
        ("fifo_every", 0),
    ],
)
def test_a_wrong_configuration_names_the_argument(name, value):
    with pytest.raises(ValueError, match=f"^{name}: got {value!r}, want"):
        SchedulerConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", -1),
        ("arrival", -0.5),
        ("arrival", float("nan")),
        ("arrival", float("inf")),
        ("prompt_tokens", 0),
        ("new_tokens", 0),
        ("new_tokens", 1.5),
        ("prompt_tokens", True),
    ],
)
def test_a_wrong_request_names_the_argument(name, value):
    fields = {"request_id": 0, "arrival": 0.0, "prompt_tokens": 1, "new_tokens": 1}
    with pytest.raises(ValueError, match=f"^{name}: got {value!r}, want"):
        Request(**fields | {name: value})


def test_a_request_holds_plain_numbers():
    request = Request(np.int64(3), np.float64(1.5), np.int32(4), np.int64(5))
    assert [type(v) for v in (request.request_id, request.arrival, request.new_tokens)] == [
        int, float, int,
    ]  # fmt: skip
    assert request == Request(3, 1.5, 4, 5) and request.total_tokens == 9


def test_a_request_without_prefill_decodes_in_the_step_that_admits_it():
    scheduler = make_scheduler((5, 2))
    assert scheduler.state_of(0) is State.WAITING and scheduler.has_work
    plan = scheduler.plan()
    assert plan == StepPlan(0, (), (), (0,), (), (0,))
    assert scheduler.state_of(0) is State.DECODE and scheduler.generated(0) == 0
    assert scheduler.complete(plan) == ()
    assert scheduler.generated(0) == 1 and scheduler.context_tokens(0) == 6
    assert scheduler.complete(scheduler.plan()) == (0,)
    assert scheduler.state_of(0) is State.FINISHED and not scheduler.has_work
    assert scheduler.generated(0) == 2 and scheduler.budget.used_pages == 0


def test_a_blocking_prompt_is_one_chunk():
    scheduler = make_scheduler((5, 2), (9, 1), prefill="blocking", prefill_chunk_tokens=2)
    plan = scheduler.plan()
    assert plan.chunks == (Chunk(0, 0, 5, True), Chunk(1, 0, 9, True))
    assert plan.decode == (0, 1)
    assert scheduler.complete(plan) == (1,)


def test_prompts_share_one_budget_and_decode_with_their_last_chunk():
    scheduler = make_scheduler((3, 9), (6, 9), (6, 9), prefill="chunked", prefill_chunk_tokens=7)
    plans = steps(scheduler, 4)
    assert plans[0].chunks == (Chunk(0, 0, 2, False), Chunk(1, 0, 2, False), Chunk(2, 0, 2, False))
    assert plans[1].chunks == (Chunk(0, 2, 1, True), Chunk(1, 2, 2, False), Chunk(2, 2, 2, False))
    assert plans[2].chunks == (Chunk(1, 4, 2, True), Chunk(2, 4, 2, True))
    assert [plan.decode for plan in plans] == [(), (0,), (0, 1, 2), (0, 1, 2)]
    assert plans[3].decode is plans[2].decode


def test_more_prompts_than_budget_get_a_token_each_in_order():
    scheduler = make_scheduler(*[(2, 1)] * 5, prefill="packed", prefill_chunk_tokens=2)
    plans = drain(scheduler)
    assert [[c.request_id for c in p.chunks] for p in plans] == [[0, 1], [0, 1], [2, 3], [2, 3],
                                                                 [4]]  # fmt: skip
    assert plans[4].chunks == (Chunk(4, 0, 2, True),)


def test_a_head_that_waits_is_not_overtaken():
    scheduler = make_scheduler((12, 4), (12, 4), (2, 2), capacity_pages=6)
    plans = drain(scheduler)
    assert [plan.admitted for plan in plans if plan.admitted] == [(0,), (1, 2)]
    assert plans[4].admitted == (1, 2)


def test_pack_takes_the_shortest_that_fit():
    scheduler = make_scheduler((12, 4), (12, 4), (2, 2), (8, 1), capacity_pages=6, admission="pack")
    assert scheduler.plan().admitted == (2, 3)


def test_pack_looks_no_further_than_told_and_takes_equals_in_order():
    options = {"admission": "pack", "look_ahead": 3, "max_active": 2}
    scheduler = make_scheduler((8, 4), (4, 4), (4, 4), (1, 1), **options)
    assert scheduler.plan().admitted == (1, 2)


def test_every_nth_round_is_in_order_and_stays_due():
    """Short requests would keep the budget from a long one for ever."""
    scheduler = make_scheduler((12, 4), capacity_pages=4, admission="pack", fifo_every=3)
    for request_id in range(1, 20):
        scheduler.add(Request(request_id, 0.0, 1, 1 + request_id % 3))
    plans = drain(scheduler)
    assert [0 in plan.admitted for plan in plans if plan.admitted].index(True) == 2


def test_an_oversize_request_is_rejected_with_the_numbers():
    scheduler = make_scheduler((4, 4), capacity_pages=2)
    reason = scheduler.add(Request(7, 0.0, 6, 3))
    assert reason == "request 7 needs 3 pages for 9 tokens, the KV budget has 2"
    assert scheduler.state_of(7) is State.REJECTED and scheduler.num_waiting == 1
    assert not scheduler.cancel(7)


def test_a_second_request_of_the_same_name_is_refused():
    scheduler = make_scheduler((1, 1))
    drain(scheduler)
    with pytest.raises(ValueError, match="^request_id: got 0, want one that was not added before"):
        scheduler.add(Request(0, 0.0, 1, 1))


@pytest.mark.parametrize("question", ["cancel", "state_of", "generated", "context_tokens"])
def test_an_unknown_request_is_refused(question):
    with pytest.raises(ValueError, match="^request_id: got 5, want one that was added"):
        getattr(make_scheduler(), question)(5)


def test_the_youngest_is_preempted_and_computed_again():
    scheduler = make_scheduler((4, 8), (3, 6), capacity_pages=4, preempt=True)
    plans = steps(scheduler, 2)  # 0: 5 tokens, 2 pages; 1: 4 tokens, 1 page, then 2
    assert plans[0].admitted == (0, 1) and scheduler.budget.used_pages == 4
    plans = steps(scheduler, 3)
    assert plans[2] == StepPlan(4, (), (1,), (), (), (0,))  # 0 begins its third page
    assert scheduler.state_of(1) is State.WAITING and scheduler.generated(1) == 4
    assert scheduler.context_tokens(1) == 0 and scheduler.recomputed_tokens == 0
    plans = drain(scheduler)
    admission = next(plan for plan in plans if plan.admitted)
    assert admission.number == 8 and scheduler.recomputed_tokens == 7
    assert scheduler.preemptions == 1 and scheduler.generated(1) == 6
    assert scheduler.context_tokens(1) == 9


def test_a_request_that_grows_and_is_the_youngest_makes_room_for_nobody():
    scheduler = make_scheduler((5, 3), (3, 6), capacity_pages=3, preempt=True)
    plans = drain(scheduler)
    assert plans[0].admitted == (0, 1)
    assert plans[1].preempted == (1,) and plans[1].decode == (0,)
    assert plans[3].admitted == (1,)


def test_a_preempted_prompt_is_prefilled_with_what_it_had_made():
    options = {"capacity_pages": 4, "preempt": True, "prefill": "blocking"}
    plans = drain(make_scheduler((4, 8), (3, 6), **options))
    assert [c for plan in plans for c in plan.chunks] == [
        Chunk(0, 0, 4, True), Chunk(1, 0, 3, True), Chunk(1, 0, 7, True),
    ]  # fmt: skip


def test_a_cancelled_request_holds_its_pages_until_it_is_dropped():
    scheduler = make_scheduler((4, 4), (4, 4), (4, 4), capacity_pages=4)
    steps(scheduler, 1)
    assert scheduler.cancel(0) and scheduler.state_of(0) is State.CANCELLED
    assert scheduler.num_active == 1 and scheduler.budget.used_pages == 4
    plan = scheduler.plan()
    assert (plan.dropped, plan.admitted, plan.decode) == ((0,), (2,), (1, 2))
    assert not scheduler.cancel(0)


def test_the_last_request_cancelled_is_work_until_it_is_dropped():
    scheduler = make_scheduler((4, 4))
    steps(scheduler, 1)
    scheduler.cancel(0)
    assert scheduler.has_work
    assert scheduler.plan() == StepPlan(1, (0,), (), (), (), ())
    assert not scheduler.has_work and scheduler.budget.used_pages == 0


def test_a_cancelled_waiting_request_is_only_forgotten():
    scheduler = make_scheduler((4, 4), (4, 4), max_active=1)
    steps(scheduler, 1)
    assert scheduler.cancel(1) and scheduler.num_waiting == 0
    assert all(not plan.dropped for plan in drain(scheduler))


def test_a_request_cancelled_in_its_last_step_keeps_the_token_and_does_not_finish():
    scheduler = make_scheduler((4, 1))
    plan = scheduler.plan()
    scheduler.cancel(0)
    assert scheduler.complete(plan) == ()
    assert scheduler.generated(0) == 1 and scheduler.context_tokens(0) == 5
    assert scheduler.plan().dropped == (0,)


def test_active_requests_fail_and_waiting_ones_do_not():
    scheduler = make_scheduler(*[(4, 4)] * 3, max_active=2, prefill="chunked")
    steps(scheduler, 2)
    scheduler.plan()
    assert scheduler.fail_active() == (0, 1)
    assert [scheduler.state_of(i).value for i in range(3)] == ["failed", "failed", "waiting"]
    assert scheduler.generated(0) == 2 and scheduler.budget.used_pages == 0
    plans = drain(scheduler)
    assert plans[0].number == 2 and plans[0].admitted == (2,)
    assert scheduler.state_of(2) is State.FINISHED


def test_a_scheduler_without_work_plans_nothing():
    scheduler = make_scheduler()
    assert not scheduler.has_work
    assert steps(scheduler, 2)[1] == StepPlan(1, (), (), (), (), ())


def test_no_progress_with_work_pending_fails_loudly():
    scheduler = make_scheduler((4, 4), capacity_pages=2)
    scheduler.budget.reserve(99, 1)  # a leak
    with pytest.raises(SchedulerStuck, match=r"step 0 .* 1 requests wait and 0 .* pages: 1\)"):
        scheduler.plan()


def test_stuck_tells_an_unlimited_budget():
    assert "free pages: unlimited" in str(SchedulerStuck(3, 1, 0, None))
