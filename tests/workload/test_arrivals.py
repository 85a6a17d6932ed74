"""Drawn workloads: the distributions they promise, their order, and the arguments they refuse."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.workload.arrivals import RequestList, poisson_requests, reference_requests

LENGTHS = {
    "min_prompt_tokens": 3,
    "max_prompt_tokens": 6,
    "min_decode_steps": 1,
    "max_decode_steps": 2,
}


def reference(num_requests=8, arrival_window=5, **changes):
    """Draw a small reference workload."""
    return reference_requests(num_requests, arrival_window, **LENGTHS | changes)


def poisson(num_requests=8, request_rate=2.0, **changes):
    """Draw a small workload with gamma gaps."""
    return poisson_requests(num_requests, request_rate=request_rate, **LENGTHS | changes)


def test_the_reference_workload_is_uniform_with_every_bound_included():
    requests = reference(6000, 5)
    columns = (requests.arrival, requests.prompt_tokens, requests.new_tokens)
    for values, low, high in zip(columns, (0, 3, 1), (5, 6, 2), strict=True):
        counts = np.unique_counts(values)
        assert counts.values.tolist() == list(range(low, high + 1))
        expected = 6000 / len(counts.values)
        assert (abs(counts.counts - expected) < 4.5 * expected**0.5).all()
    assert requests.unit == "steps" and requests.arrival.dtype == np.float64
    assert requests.prompt_tokens.dtype == requests.new_tokens.dtype == np.int64


def test_the_reference_workload_is_sorted_by_arrival_then_by_the_id_drawn():
    requests = reference(200, 3)
    rng = np.random.Generator(np.random.PCG64(7))
    prompts, steps = (rng.integers(*bounds, 200, endpoint=True) for bounds in ((3, 6), (1, 2)))
    arrivals = rng.integers(0, 3, 200, endpoint=True)
    drawn = zip(arrivals, range(200), prompts, steps, strict=True)
    assert list(requests) == [(float(a), p, s) for a, _, p, s in sorted(drawn)]


def test_a_window_of_zero_lets_all_arrive_at_once_in_the_order_drawn():
    requests = reference(50, 0)
    assert not requests.arrival.any()
    assert sorted(requests.prompt_tokens) != requests.prompt_tokens.tolist()


@pytest.mark.parametrize("draw", [reference, poisson])
def test_equal_seeds_give_equal_requests_and_others_do_not(draw):
    assert list(draw(seed=3)) == list(draw(seed=3)) != list(draw(seed=4))
    assert list(draw()) == list(draw(seed=7))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(burstiness):
    requests = poisson(40_000, 50.0, burstiness=burstiness)
    gaps = np.diff(requests.arrival, prepend=0)
    assert requests.unit == "s"
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_poisson_gaps_are_exponential():
    gaps = np.sort(np.diff(poisson(10_000, 1.0).arrival, prepend=0))
    distance = abs(1 - np.exp(-gaps) - np.arange(10_000) / 10_000).max()
    assert distance < 1.95 / 100  # Kolmogorov-Smirnov, 1 in 1000


def test_a_sweep_over_rates_varies_the_rate_alone():
    slow, fast = poisson(100, 1.0), poisson(100, 8.0)
    assert np.array_equal(slow.arrival, fast.arrival * 8)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens)
    assert np.array_equal(slow.new_tokens, fast.new_tokens)


def test_an_infinite_rate_lets_all_arrive_at_zero():
    assert not poisson(20, np.inf).arrival.any()


def test_the_source_holds_the_arguments_for_a_record():
    source = json.loads(json.dumps(poisson(4, 2.5).source))
    expected = {"workload": "poisson", "num_requests": 4, "request_rate": 2.5, "burstiness": 1.0}
    assert source == expected | LENGTHS | {"seed": 7}
    expected = {"workload": "reference", "num_requests": 4, "arrival_window": 9, "seed": 1}
    assert reference(4, 9, seed=1).source == expected | LENGTHS


@given(
    num_requests=st.integers(1, 40),
    window=st.integers(0, 10),
    low=st.integers(1, 2**31 - 1),
    spread=st.integers(0, 2**31),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_draw_leaves_its_bounds(num_requests, window, low, spread, seed):
    high = min(low + spread, 2**31 - 1)
    bounds = (low, high, low, high)
    for requests in (
        reference_requests(num_requests, window, *bounds, seed),
        poisson_requests(num_requests, *bounds, request_rate=1.0, seed=seed),
    ):
        assert len(requests) == num_requests
        for tokens in (requests.prompt_tokens, requests.new_tokens):
            assert low <= tokens.min() and tokens.max() <= high
        assert (np.diff(requests.arrival, prepend=0) >= 0).all()
    assert requests.arrival[-1] < np.inf


@pytest.mark.parametrize(
    "argument, value",
    [
        ("num_requests", 0),
        ("num_requests", 2.0),
        ("min_prompt_tokens", 0),
        ("min_prompt_tokens", 7),
        ("max_prompt_tokens", 2**31),
        ("min_decode_steps", 0),
        ("max_decode_steps", 0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_both_refuse_wrong_arguments(argument, value):
    for draw in (reference, poisson):
        with pytest.raises(ValueError, match=f"^{argument}: got "):
            draw(**{argument: value})


@pytest.mark.parametrize(
    "argument, value",
    [
        ("request_rate", 0.0),
        ("request_rate", -1.0),
        ("request_rate", np.nan),
        ("request_rate", 1e-320),
        ("burstiness", 0.0),
        ("burstiness", np.inf),
        ("burstiness", np.nan),
    ],
)
def test_a_rate_or_burstiness_without_finite_gaps_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: got "):
        poisson(**{argument: value})


@pytest.mark.parametrize("window", [-1, 1.5, True])
def test_a_window_that_is_no_number_of_steps_is_refused(window):
    with pytest.raises(ValueError, match="^arrival_window: got "):
        reference(arrival_window=window)


def test_a_request_list_copies_its_arrays_and_nobody_can_write_to_them():
    arrival = np.array([0.0, 1.0])
    requests = RequestList(arrival, [5, 6], [1, 2], "s")
    arrival[0] = 9
    assert list(requests) == [(0.0, 5, 1), (1.0, 6, 2)] and len(requests) == 2
    with pytest.raises(ValueError, match="read-only"):
        requests.prompt_tokens[0] = 1
    assert requests.source == {} and len(RequestList([], [], [], "s")) == 0


@pytest.mark.parametrize(
    "fault, columns",
    [
        ("arrival", ([1.0, 0.5], [1, 1], [1, 1], "s")),
        ("arrival", ([-1.0, 0.5], [1, 1], [1, 1], "s")),
        ("arrival", ([0.0, np.nan], [1, 1], [1, 1], "s")),
        ("arrival", ([0.0, np.inf], [1, 1], [1, 1], "s")),
        ("arrival", ([[0.0]], [[1]], [[1]], "s")),
        ("prompt_tokens", ([0.0, 1.0], [1], [1, 1], "s")),
        ("prompt_tokens", ([0.0, 1.0], [1, 0], [1, 1], "s")),
        ("new_tokens", ([0.0, 1.0], [1, 1], [1, 2**31], "s")),
        ("unit", ([0.0, 1.0], [1, 1], [1, 1], "ms")),
    ],
)
def test_a_request_list_refuses_what_no_engine_can_serve(fault, columns):
    with pytest.raises(ValueError, match=f"^{fault}: got "):
        RequestList(*columns)
