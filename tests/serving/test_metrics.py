"""ServingLog and summarise: against hand-made cases, and a slow computation without arrays."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.serving.metrics import LATENCIES, ServingLog, collect_tokens, parse_goodput, summarise


def make_log():
    """Request 0: tokens at 1, 2, 4; request 1: at 2, 4; request 2: one token at 4; 3 is refused."""
    log = ServingLog()
    log.on_arrival(0, 0.5, 10)
    log.on_arrival(1, 1.0, 20)
    log.on_arrival(3, 1.0, 999)
    log.on_reject(3, "too long")
    log.on_admit(0, 0.75)
    log.on_tokens((0,), 1.0)
    log.on_admit(1, 1.0)
    log.on_tokens((0, 1), 2.0)
    log.on_arrival(2, 2.5, 30)
    log.on_preempt((1,))
    log.on_admit(1, 3.0)
    log.on_admit(2, 3.0)
    log.on_tokens((0, 1, 2), 4.0)
    log.on_finish((0, 1, 2), 4.5)
    return log


def test_a_small_run_by_hand():
    result = summarise(make_log(), {"ttft": 1000, "tpot": 1500})
    want = {
        "duration": 4.0,
        "completed": 3,
        "failed": 0,
        "cancelled": 0,
        "rejected": 1,
        "preempted": 1,
        "total_input_tokens": 60,
        "total_output_tokens": 6,
        "request_throughput": 0.75,
        "output_throughput": 1.5,
        "total_token_throughput": 16.5,
        "request_goodput": 0.25,  # only 0: TPOT of 1 and TTFT of 2 are too long
        "max_concurrent_requests": 3,
        "mean_ttft_ms": 1000.0,  # 500, 1000, 1500
        "median_ttft_ms": 1000.0,
        "p50_ttft_ms": 1000.0,
        "p95_ttft_ms": 1450.0,
        "p99_ttft_ms": 1490.0,
        "mean_tpot_ms": 1750.0,  # 1500, 2000; one token has none
        "std_tpot_ms": 250.0,
        "mean_itl_ms": 5000 / 3,  # 1000, 2000, 2000, pooled
        "median_itl_ms": 2000.0,
        "mean_e2el_ms": 8000 / 3,  # 3500, 3000, 1500
        "mean_queue_wait_ms": 250.0,  # 250, 0, 500: the first admission counts
        "longest_gap_ms": 2000.0,
        "p95_gap_ms": 2000.0,
    }
    assert {key: result[key] for key in want} == pytest.approx(want)


def test_the_keys_are_vllms():
    result = summarise(ServingLog())
    statistic = ("mean", "median", "std", "p50", "p95", "p99")
    names = {f"{s}_{name}_ms" for s in statistic for name in LATENCIES}
    counts = {
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
        "request_throughput", "output_throughput", "total_token_throughput", "request_goodput",
        "max_concurrent_requests", "rejected", "preempted", "cancelled", "longest_gap_ms",
        "p95_gap_ms",
    }  # fmt: skip
    assert result.keys() == names | counts


def test_an_empty_run_has_counts_and_no_latencies():
    result = summarise(ServingLog(), {"ttft": 1})
    assert result["completed"] == result["duration"] == result["max_concurrent_requests"] == 0
    assert all(math.isnan(v) for key, v in result.items() if key.endswith("_ms"))
    assert math.isnan(result["request_goodput"])


def test_one_token_has_no_tpot_and_meets_every_one():
    log = ServingLog()
    log.on_arrival(5, 0.0, 1)
    log.on_admit(5, 0.0)
    log.on_tokens((5,), 2.0)
    log.on_finish((5,), 2.0)
    result = summarise(log, {"tpot": 1e-3})
    assert math.isnan(result["mean_tpot_ms"]) and math.isnan(result["p99_itl_ms"])
    assert result["request_goodput"] == 0.5 and result["std_ttft_ms"] == 0.0
    assert math.isnan(result["longest_gap_ms"])


def test_a_latency_of_just_the_slo_meets_it():
    assert summarise(make_log(), {"ttft": 1500})["request_goodput"] == 0.75
    assert summarise(make_log(), {"ttft": 1499.999})["request_goodput"] == 0.5
    assert summarise(make_log())["request_goodput"] is None


def test_requests_that_did_not_complete_count_only_in_gaps():
    log = make_log()
    log.on_arrival(8, 4.0, 1000)
    log.on_arrival(9, 4.0, 1000)
    log.on_admit(8, 4.0)
    log.on_tokens((8,), 5.0)
    log.on_tokens((8,), 15.0)
    log.on_fail((8,), 15.5)
    log.on_cancel((9,), 16.5)
    result, before = summarise(log), summarise(make_log())
    assert (result["failed"], result["cancelled"], result["duration"]) == (1, 1, 16.0)
    assert result["longest_gap_ms"] == 10000 and result["p95_gap_ms"] == pytest.approx(8800)
    same = [k for k in before if k.endswith("_ms") and "gap" not in k]
    same += ["completed", "total_input_tokens", "total_output_tokens"]
    assert {k: result[k] for k in same} == {k: before[k] for k in same}
    assert result["max_concurrent_requests"] == 5


def test_a_request_that_comes_when_another_ends_is_not_concurrent():
    log = ServingLog()
    for request_id in range(3):
        log.on_arrival(request_id, float(request_id), 1)
        log.on_admit(request_id, float(request_id))
        log.on_tokens((request_id,), request_id + 1.0)
        log.on_finish((request_id,), request_id + 1.0)
    assert summarise(log)["max_concurrent_requests"] == 1


def test_a_request_that_finished_without_a_token_is_a_fault():
    log = make_log()
    log.on_finish((7,), 5.0)
    with pytest.raises(AssertionError, match="finished without a token"):
        summarise(log)


def test_an_unknown_slo_is_refused():
    with pytest.raises(ValueError, match="^slo: got 'itl', want one of ttft, tpot, e2el"):
        summarise(make_log(), {"itl": 5})


def test_a_batch_that_stays_the_same_is_kept_once():
    log, batch = ServingLog(), (4, 2)
    for step in range(3):
        log.on_tokens(batch, float(step))
    assert all(ids is batch for ids in log.steps)
    tokens = collect_tokens(log)
    assert tokens.request_ids.tolist() == [2, 4] and tokens.counts.tolist() == [3, 3]
    assert tokens.times.tolist() == [0, 1, 2, 0, 1, 2]


def percentile(values, q):
    """Return a percentile by linear interpolation."""
    values = sorted(values)
    position = (len(values) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def slow_summary(arrivals, admissions, tokens, finished, slo):
    """Return some of `summarise`, request by request; tokens: request -> times."""
    samples = {name: [] for name in LATENCIES}
    num_good = 0
    for i in finished:
        ttft, e2el = tokens[i][0] - arrivals[i], tokens[i][-1] - arrivals[i]
        count, tpot = len(tokens[i]), 0.0
        if count > 1:
            tpot = (tokens[i][-1] - tokens[i][0]) / (count - 1)
            samples["tpot"].append(tpot)
        samples["ttft"].append(ttft)
        samples["e2el"].append(e2el)
        samples["queue_wait"].append(admissions[i] - arrivals[i])
        samples["itl"] += [b - a for a, b in zip(tokens[i], tokens[i][1:], strict=False)]
        took = {"ttft": ttft, "tpot": tpot, "e2el": e2el}
        num_good += all(took[name] * 1e3 <= limit for name, limit in slo.items())
    gaps = [b - a for times in tokens.values() for a, b in zip(times, times[1:], strict=False)]
    result = {"good": num_good}
    for name, values in samples.items():
        for q in (50, 95, 99) if values else ():
            result[f"p{q}_{name}_ms"] = 1e3 * percentile(values, q)
        if values:
            result[f"mean_{name}_ms"] = 1e3 * statistics.fmean(values)
            result[f"median_{name}_ms"] = 1e3 * statistics.median(values)
            result[f"std_{name}_ms"] = 1e3 * statistics.pstdev(values)
    if gaps:
        result |= {"longest_gap_ms": 1e3 * max(gaps), "p95_gap_ms": 1e3 * percentile(gaps, 95)}
    return result


@given(st.data())
def test_a_random_run_equals_the_slow_computation(data):
    num_requests = data.draw(st.integers(1, 5))
    left = {i: data.draw(st.integers(1, 6)) for i in range(num_requests)}
    log, now = ServingLog(), 0.0
    arrivals, admissions, tokens, finished = {}, {}, {}, []
    for i in range(num_requests):
        arrivals[i] = data.draw(st.integers(0, 8)) / 4
        log.on_arrival(i, arrivals[i], 3)
    for _ in range(data.draw(st.integers(0, 25))):
        now += data.draw(st.integers(1, 16)) / 8  # in eighths: limits are met exactly, or not
        present = [i for i in left if arrivals[i] <= now and i not in finished]
        batch = tuple(data.draw(st.lists(st.sampled_from(present), unique=True)) if present else ())
        for i in batch:
            admissions.setdefault(i, now)
            log.on_admit(i, now)
            tokens.setdefault(i, []).append(now + 0.5)
        now += 0.5
        log.on_tokens(batch, now)
        ended = tuple(i for i in batch if len(tokens[i]) == left[i])
        finished += ended
        log.on_finish(ended, now)
    slo = {"ttft": 2000.0, "tpot": 1250.0, "e2el": 5000.0}
    got, want = summarise(log, slo), slow_summary(arrivals, admissions, tokens, finished, slo)
    if got["duration"]:
        assert got["request_goodput"] == pytest.approx(want["good"] / got["duration"])
    del want["good"]
    latencies = {k: v for k, v in got.items() if k.endswith("_ms") and not math.isnan(v)}
    assert latencies == pytest.approx(want)
    assert got["total_output_tokens"] == sum(len(tokens[i]) for i in finished)
    assert got["total_input_tokens"] == 3 * len(finished) == 3 * got["completed"]
    ends = {i: tokens[i][-1] if i in finished else math.inf for i in arrivals}
    concurrent = [sum(arrivals[i] <= t < ends[i] for i in arrivals) for t in arrivals.values()]
    assert got["max_concurrent_requests"] == max(concurrent)


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft:500 tpot:50", {"ttft": 500, "tpot": 50}),
        ("  e2el:0.5\t", {"e2el": 0.5}),
        ("tpot:50 ttft:1 e2el:2", {"tpot": 50, "ttft": 1, "e2el": 2}),
    ],
)
def test_goodput_is_read(text, slo):
    assert parse_goodput(text) == slo


@pytest.mark.parametrize(
    "text",
    ["", " ", "ttft", "ttft:", "ttft:x", "itl:5", "ttft:-5", "ttft:0", "ttft:nan", "ttft:inf",
     "ttft:1e3", "ttft:5,tpot:5", "ttft:5 ttft:6", "TTFT:5", "ttft:" + "9" * 400, "ttft::5"],
)  # fmt: skip
def test_a_goodput_that_means_nothing_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="^goodput: got .*, want ") as error:
        parse_goodput(text)
    assert "\n" not in str(error.value)
