"""The engine over real caches and paths: outputs, bookkeeping, faults and stops."""

from dataclasses import replace

import numpy as np
import pytest

from numbadsd.config import ContinuousBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.decode.prefill import CpuPromptAttention
from numbadsd.errors import EngineError
from numbadsd.pages.cache import PagedKvCache
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.clock import StepClock, VirtualClock
from numbadsd.serving.engine import Engine
from numbadsd.serving.plan import SchedulerConfig
from numbadsd.serving.request import Request, State
from numbadsd.serving.scheduler import Scheduler
from numbadsd.serving.stats import STAGES
from numbadsd.serving.timeline import Timeline
from numbadsd.workload.payload import StoredTokens, UniformTokens

CONFIG = ContinuousBenchConfig(num_heads=2, head_dim=16, page_size=4, top_k_pages=2)
MODEL = CONFIG.model
SEED = 5
REQUESTS = [
    Request(i, arrival, prompt, new)
    for i, (arrival, prompt, new) in enumerate(
        [(0, 9, 6), (0, 3, 9), (1, 17, 4), (2, 1, 1), (2, 4, 8), (9, 30, 3), (60, 5, 2)]
    )
]
NUM_PAGES = 60


class Recorder:
    """Keeps every output by request and position; the same place must get the same bits."""

    def __init__(self):
        self.decoded, self.prefilled = {}, {}

    def __call__(self, request_ids, positions, outputs):
        is_prompt = isinstance(request_ids, np.ndarray)
        kept = self.prefilled if is_prompt else self.decoded
        for i, request_id in enumerate(request_ids):
            place = (int(request_id), int(positions[i]))
            if is_prompt and place in kept:  # computed again after a preemption
                np.testing.assert_array_equal(kept[place], outputs[i])
            assert is_prompt or place not in kept, f"{place} decoded twice"
            kept[place] = outputs[i].copy()


class Setup:
    """An engine, its cache, and what it put out."""

    def __init__(self, *, path="sparse_cpu", backend=CacheBackend, clock=None, tokens=None,
                 num_pages=NUM_PAGES, gate=0, **options):  # fmt: skip
        engine_options = {
            name: options.pop(name) for name in ("lazy_release", "timeline") if name in options
        }
        self.cache, self.recorder = PagedKvCache(MODEL, num_pages), Recorder()
        self.backend = backend(
            self.cache, make_path(path, self.cache), tokens or UniformTokens(SEED),
            CpuPromptAttention(self.cache), short_path=make_path("dense_cpu", self.cache),
            gate_tokens=gate, on_outputs=self.recorder,
        )  # fmt: skip
        scheduler_config = SchedulerConfig(page_size=4, capacity_pages=num_pages, **options)
        self.scheduler = Scheduler(scheduler_config)
        self.engine = Engine(self.scheduler, self.backend, clock or StepClock(), **engine_options)

    def run(self, requests=REQUESTS):
        self.engine.run(requests)
        self.check_idle()
        return self

    def check_idle(self):
        assert self.cache.request_ids == [] and self.scheduler.budget.used_pages == 0
        assert self.cache.pool.num_free_pages == self.cache.pool.capacity_pages
        self.cache.check_integrity()


def places(requests=REQUESTS):
    """Return every (request, position) that is decoded."""
    return {(r.request_id, r.prompt_tokens + i) for r in requests for i in range(r.new_tokens)}


def assert_same_outputs(left: Recorder, right: Recorder):
    assert left.decoded.keys() == right.decoded.keys()
    for place, output in left.decoded.items():
        np.testing.assert_array_equal(output, right.decoded[place], err_msg=str(place))


@pytest.fixture(scope="module")
def alone():
    """Outputs of each request decoded with nobody else there."""
    return Setup(max_active=1, num_pages=20).run().recorder


VARIANTS = {
    "together": {},
    "two at a time": {"max_active": 2},
    "few pages": {"num_pages": 12},
    "packed admission": {"num_pages": 14, "admission": "pack"},
    "lazy release": {"lazy_release": True, "num_pages": 14},
    "blocking": {"prefill": "blocking"},
    "chunks of 1": {"prefill": "chunked", "prefill_chunk_tokens": 1},
    "chunks of 5": {"prefill": "chunked", "prefill_chunk_tokens": 5},
    "packed chunks of 5": {"prefill": "packed", "prefill_chunk_tokens": 5},
    "packed chunks of 64": {"prefill": "packed", "prefill_chunk_tokens": 64},
    "preempted": {"preempt": True, "num_pages": 11},
    "preempted in chunks": {
        "preempt": True, "num_pages": 11, "prefill": "packed", "prefill_chunk_tokens": 7,
    },
    "virtual clock": {"clock": VirtualClock(1000.0)},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_outputs_are_those_of_each_request_alone(variant, alone):
    setup = Setup(**variant).run()
    assert setup.recorder.decoded.keys() == places()
    assert_same_outputs(setup.recorder, alone)
    assert setup.engine.stats.generated_tokens == sum(r.new_tokens for r in REQUESTS)
    if variant.get("preempt"):
        assert setup.scheduler.preemptions > 0
        lost = setup.scheduler.recomputed_tokens
        written = sum(r.prompt_tokens for r in REQUESTS)
        assert setup.engine.stats.prompt_tokens > written and lost > 0


@pytest.mark.parametrize("variant", ["chunks of 1", "packed chunks of 5", "preempted in chunks"])
def test_prompts_attend_alike_in_any_chunks(variant):
    whole = Setup(prefill="blocking").run().recorder.prefilled
    prompts = {(r.request_id, i) for r in REQUESTS for i in range(r.prompt_tokens)}
    assert whole.keys() == prompts
    chunked = Setup(**VARIANTS[variant]).run().recorder.prefilled
    for place in prompts:
        np.testing.assert_array_equal(chunked[place], whole[place])


def test_dense_outputs_are_those_of_each_request_alone():
    together = Setup(path="dense_cpu").run().recorder
    assert_same_outputs(together, Setup(path="dense_cpu", max_active=1).run().recorder)


def test_a_gate_lets_short_contexts_attend_to_everything():
    setup = Setup(gate=12).run()
    dense = Setup(path="dense_cpu").run().recorder.decoded
    sparse = Setup().run().recorder.decoded
    for place, output in setup.recorder.decoded.items():
        expected = dense if place[1] < 12 else sparse
        np.testing.assert_array_equal(output, expected[place])
    assert setup.backend.gated_tokens == sum(p < 12 for _, p in places())
    assert any(not np.array_equal(dense[p], sparse[p]) for p in dense)


def test_stored_tokens_are_those_that_are_made_in_the_loop(alone):
    tokens = StoredTokens(
        UniformTokens(SEED), MODEL, [r.prompt_tokens for r in REQUESTS],
        [r.new_tokens for r in REQUESTS],
    )  # fmt: skip
    assert_same_outputs(Setup(tokens=tokens).run().recorder, alone)
    preempted = Setup(tokens=tokens, **VARIANTS["preempted"]).run()
    assert_same_outputs(preempted.recorder, alone)


def test_preadmitted_prompts_are_written_once_and_before(alone):
    setup = Setup(max_active=2)
    setup.scheduler = setup.engine.scheduler = Scheduler(SchedulerConfig(2, 4, None))
    setup.engine.preadmit(REQUESTS)
    assert {r: setup.cache.num_tokens(r) for r in setup.cache.request_ids} == {
        r.request_id: r.prompt_tokens for r in REQUESTS
    }
    setup.run()
    assert setup.engine.stats.prompt_tokens == 0
    assert_same_outputs(setup.recorder, alone)


def test_stages_add_up_to_the_total_and_a_timeline_has_every_step():
    timeline = Timeline()
    setup = Setup(prefill="chunked", timeline=timeline).run()
    stats = setup.engine.stats
    other_ns = stats.total_ns - sum(stats.stages_ns.values())
    assert 0 <= other_ns < 0.5 * stats.total_ns
    assert all(stats.stages_ns[name] > 0 for name in STAGES)
    assert len(timeline) == stats.num_steps
    assert len(stats.step_ns) == len(setup.engine.log.steps)
    spans = [e for e in timeline.events() if e["ph"] == "X"]
    assert {e["name"] for e in spans} <= set(STAGES) and len(spans) >= 2 * stats.num_steps


def test_an_oversize_request_is_rejected_with_the_reason_and_others_finish():
    requests = [Request(0, 0, 5, 2), Request(1, 0, 500, 2), Request(2, 1, 6, 3)]
    setup = Setup(num_pages=10).run(requests)
    assert list(setup.engine.log.rejected) == [1]
    assert "126 pages for 502 tokens" in setup.engine.log.rejected[1]
    assert setup.recorder.decoded.keys() == places([requests[0], requests[2]])


def test_a_burst_of_long_prompts_never_runs_out_of_pages():
    requests = [Request(i, 0, 30 + i % 7, 5) for i in range(40)]
    setup = Setup(num_pages=25, prefill="packed", prefill_chunk_tokens=16).run(requests)
    assert setup.recorder.decoded.keys() == places(requests)
    assert setup.scheduler.budget.peak_pages <= 25


# ---- faults and stops


class Faulty(CacheBackend):
    """Raises in the n-th call of a kind."""

    kind, countdown = "decode", 3

    def _count(self, kind):
        if kind == self.kind:
            self.countdown -= 1
            if self.countdown == 0:
                raise RuntimeError("the device fell off")

    def reserve(self, *arguments):
        self._count("reserve")
        super().reserve(*arguments)

    def write_prompts(self, *arguments):
        self._count("write")
        super().write_prompts(*arguments)

    def attend_prompts(self, *arguments):
        self._count("attend")
        super().attend_prompts(*arguments)

    def decode(self, *arguments):
        self._count("decode")
        super().decode(*arguments)

    def _store_step(self, *arguments):
        self._count("append")
        super()._store_step(*arguments)


@pytest.mark.parametrize("kind", ["reserve", "write", "attend", "decode", "append"])
@pytest.mark.parametrize("countdown", [1, 3])
@pytest.mark.parametrize("preempt", [False, True])
def test_a_backend_that_fails_loses_nothing_silently(kind, countdown, preempt):
    setup = Setup(backend=Faulty, prefill="chunked", prefill_chunk_tokens=6, preempt=preempt,
                  num_pages=20)  # fmt: skip
    setup.backend.kind, setup.backend.countdown = kind, countdown
    with pytest.raises(EngineError, match=r"step \d+ failed \(RuntimeError: the device fell off\)"):
        setup.engine.run(REQUESTS)
    setup.check_idle()
    log = setup.engine.log
    ended = [*log.finished, *log.failed, *log.cancelled, *log.rejected]
    assert sorted(ended) == sorted(log.arrivals) and log.failed
    assert all(setup.scheduler.state_of(r) is State.FAILED for r in log.failed)
    for place, output in setup.recorder.decoded.items():  # what was made before is right
        assert output.shape == (2, 16), place


def test_a_pool_that_is_smaller_than_the_budget_fails_loudly():
    setup = Setup(prefill="chunked", prefill_chunk_tokens=6)
    setup.cache.reserve_pages(99, NUM_PAGES - 8)  # somebody else's
    with pytest.raises(EngineError, match="PoolExhausted"):
        setup.engine.run(REQUESTS)
    assert setup.cache.request_ids == [99]


class StoppedAt(StepClock):
    """Stops its engine when a step is reached."""

    def __init__(self, step, times=1):
        super().__init__()
        self.step, self.times, self.engine = step, times, None

    def now(self):
        if super().now() == self.step and self.times:
            self.times -= 1
            self.engine.stop()
        return super().now()


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_a_stop_finishes_what_is_active_and_says_what_was_not_started(step):
    clock = StoppedAt(step)
    setup = Setup(clock=clock, max_active=3)
    clock.engine = setup.engine
    setup.run()
    log, stats = setup.engine.log, setup.engine.stats
    assert len(log.arrivals) + stats.not_started == len(REQUESTS)
    assert sorted([*log.finished, *log.cancelled]) == sorted(log.arrivals)
    finished = [r for r in REQUESTS if r.request_id in log.finished]
    assert setup.recorder.decoded.keys() == places(finished)


def test_a_second_stop_ends_what_is_active():
    clock = StoppedAt(2, times=2)
    setup = Setup(clock=clock, max_active=3)
    clock.engine = setup.engine
    clock.now_again = True
    setup.run()
    log = setup.engine.log
    assert sorted([*log.finished, *log.cancelled]) == sorted(log.arrivals) and log.cancelled


@pytest.mark.parametrize("when", [0, 1, 3, 6])
@pytest.mark.parametrize("prefill", ["none", "chunked"])
def test_a_request_that_is_cancelled_frees_its_pages(when, prefill, alone):
    """In every state it may be in; the others do not notice."""

    class Cancelling(StepClock):
        def now(self):
            if super().now() == when:
                for request_id in (0, 2):
                    if request_id in setup.engine.log.arrivals:
                        setup.engine.cancel(request_id)
            return super().now()

    setup = Setup(clock=Cancelling(), prefill=prefill, prefill_chunk_tokens=8, max_active=2)
    setup.run()
    for request in REQUESTS:
        if request.request_id in setup.engine.log.cancelled:
            continue
        for place in places([request]):
            np.testing.assert_array_equal(setup.recorder.decoded[place], alone.decoded[place])


def test_a_run_is_the_same_again():
    logs = [Setup(preempt=True, num_pages=11, clock=VirtualClock(7.0)).run() for _ in range(2)]
    first, second = (s.engine.log for s in logs)
    assert first.steps == second.steps and first.step_times == second.step_times
    assert first.admissions == second.admissions and first.finished == second.finished


def test_the_configuration_refuses_what_excludes_each_other():
    for change, message in {
        "cpu_cache": ({"gpu_synthetic_decode_append": 1, "admission_mode": 0}, "cpu_cache"),
        "prefill": ({"preadmit_prompts": 1, "prefill": "packed"}, "--prefill"),
        "lazy": ({"lazy_release": 1, "preempt": True}, "--preempt"),
        "gate": ({"gate_tokens": 5, "benchmark_mode": 1}, "dense"),
        "mode": ({"admission_mode": 3}, "0 or cpu_cache, 1 or direct_gpu_upload"),
        "step": ({"step_ms": 2.0}, "--clock virtual"),
    }.values():
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)
