"""What holds for every run of the scheduler: serving.md section E."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.serving.plan import SchedulerConfig
from numbadsd.serving.request import Request, State
from tests.serving.backend import alone, run_to_end
from tests.serving.strategies import configs, request_lists

EXAMPLES = settings(max_examples=150)


def first_admissions(plans):
    """Return requests in the order in which they were admitted first."""
    return list(dict.fromkeys(i for plan in plans for i in plan.admitted))


@EXAMPLES
@given(configs, request_lists())
def test_every_request_ends_and_what_it_made_is_what_it_makes_alone(config, requests):
    scheduler, backend, plans, reasons = run_to_end(config, requests)
    for request in requests:
        pages = -(-request.total_tokens // config.page_size)
        is_oversize = config.capacity_pages is not None and pages > config.capacity_pages
        assert (request.request_id in reasons) == is_oversize
        want = State.REJECTED if is_oversize else State.FINISHED
        assert scheduler.state_of(request.request_id) is want
        made = [] if is_oversize else alone(request)
        assert backend.outputs[request.request_id] == made
    assert scheduler.budget.used_pages == 0 and len(backend.free) == backend.num_pages


@EXAMPLES
@given(configs, request_lists())
def test_tokens_appended_are_contexts_and_recomputed_ones(config, requests):
    scheduler, backend, plans, reasons = run_to_end(config, requests)
    served = [r for r in requests if r.request_id not in reasons]
    assert sum(len(plan.decode) for plan in plans) == sum(r.new_tokens for r in served)
    contexts = sum(r.total_tokens for r in served)
    assert backend.appended == contexts + scheduler.recomputed_tokens
    assert contexts == sum(scheduler.context_tokens(r.request_id) for r in served)
    assert scheduler.preemptions == sum(len(plan.preempted) for plan in plans)
    assert (scheduler.preemptions > 0) == (scheduler.recomputed_tokens > 0)


@EXAMPLES
@given(configs, request_lists())
def test_limits_hold_in_every_step(config, requests):
    def check_step(scheduler, backend, plan):
        assert scheduler.num_active <= config.max_active
        assert len(plan.decode) <= config.max_active
        assert not (plan.preempted and plan.admitted)
        if config.prefill == "none":
            assert not plan.chunks
        elif config.prefill == "blocking":
            assert [c.request_id for c in plan.chunks] == list(plan.admitted)
            assert set(plan.admitted) <= set(plan.decode)
        else:
            assert sum(c.count for c in plan.chunks) <= config.prefill_chunk_tokens
        for request_id, pages in backend.pages.items():
            assert len(pages) <= scheduler.budget.held_pages(request_id)
        assert plan.decode or plan.chunks, "a step with work pending does some"

    scheduler, *_ = run_to_end(config, requests, check_step)
    assert scheduler.budget.peak_pages <= (config.capacity_pages or 10**9)


@EXAMPLES
@given(configs, request_lists())
def test_fifo_admits_in_order_of_arrival(config, requests):
    _, _, plans, reasons = run_to_end(replace(config, admission="fifo"), requests)
    want = [r.request_id for r in requests if r.request_id not in reasons]
    assert first_admissions(plans) == want


@EXAMPLES
@given(configs, request_lists())
def test_decode_is_in_order_of_admission(config, requests):
    admissions = {}
    for number, plan in enumerate(run_to_end(config, requests)[2]):
        admissions |= {i: (number, place) for place, i in enumerate(plan.admitted)}
        assert list(plan.decode) == sorted(plan.decode, key=admissions.get)
        assert [c.request_id for c in plan.chunks] == sorted(
            (c.request_id for c in plan.chunks), key=admissions.get
        )


@EXAMPLES
@given(configs, request_lists())
def test_the_oldest_is_never_preempted_and_steps_are_bounded(config, requests):
    active = []
    _, _, plans, _ = run_to_end(config, requests)
    left = {r.request_id: r.new_tokens for r in requests}
    for plan in plans:
        for request_id in plan.preempted:
            assert request_id == active[-1] and len(active) > 1
            active.pop()
        active += plan.admitted
        for request_id in plan.decode:
            left[request_id] -= 1
            if not left[request_id]:
                active.remove(request_id)
    # each step brings the oldest forward by one token of its prompt or its output, at least
    assert len(plans) <= sum(r.prompt_tokens + 2 * r.new_tokens for r in requests)


@EXAMPLES
@given(configs, request_lists())
def test_the_same_requests_give_the_same_plans(config, requests):
    first, second = (run_to_end(config, requests) for _ in range(2))
    assert first[2] == second[2] and first[3] == second[3]


@EXAMPLES
@given(configs, request_lists())
def test_nobody_is_overtaken_in_more_rounds_than_allowed(config, requests):
    config = replace(config, admission="pack", preempt=False)
    _, _, plans, reasons = run_to_end(config, [replace(r, arrival=0) for r in requests])
    waiting = [r.request_id for r in requests if r.request_id not in reasons]
    overtaken = 0
    for plan in plans:
        if plan.admitted:
            overtaken = 0 if waiting[0] in plan.admitted else overtaken + 1
            assert overtaken < config.fifo_every
            waiting = [i for i in waiting if i not in plan.admitted]
    assert not waiting


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("prefill", ["none", "blocking", "chunked", "packed"])
def test_a_budget_of_sixteen_tokens_serialises_and_everything_finishes(prefill, preempt):
    config = SchedulerConfig(
        page_size=4, capacity_pages=4, prefill=prefill, prefill_chunk_tokens=3, preempt=preempt
    )
    requests = [Request(i, 0, 10, 6) for i in range(5)]
    scheduler, backend, _, reasons = run_to_end(config, requests)
    assert not reasons and scheduler.budget.peak_pages == 4
    assert all(backend.outputs[r.request_id] == alone(r) for r in requests)


@settings(max_examples=20)
@given(st.integers(1, 6), st.sampled_from(["chunked", "packed"]), st.integers(1, 40))
def test_a_decoding_request_never_waits_for_more_than_one_chunk(num_prompts, prefill, chunk):
    """The stall of a step is bounded, however many prompts arrive, and however long they are."""
    config = SchedulerConfig(prefill=prefill, prefill_chunk_tokens=chunk)
    requests = [Request(0, 0, 1, 200)]
    requests += [Request(1 + i, 3, 50, 2) for i in range(num_prompts)]
    _, _, plans, _ = run_to_end(config, requests)
    assert all(sum(c.count for c in plan.chunks) <= chunk for plan in plans)
    assert all(0 in plan.decode for plan in plans[:200])
