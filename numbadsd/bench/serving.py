"""`dsd_continuous_bench`: requests that come and go, decoded together and one at a time."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

from tqdm import tqdm

from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.bench.serving_figures import (
    NAN,
    Before,
    bus_gbps,
    run_figures,
    serving_figures,
    sparse_cheaper_token_fraction,
)
from numbadsd.bench.serving_setup import (
    as_requests,
    budget_pages,
    check_memory,
    choose_backend,
    draw_requests,
    make_backend,
    make_engine,
    make_tokens,
    pool_pages,
    warm_up,
)
from numbadsd.config import ContinuousBenchConfig
from numbadsd.errors import CudaUnavailable, NumbadsdError
from numbadsd.kernels.cpu.busy import BUSY
from numbadsd.serving.engine import Engine
from numbadsd.serving.request import Request
from numbadsd.serving.timeline import Timeline
from numbadsd.workload.arrivals import RequestList


class StopSwitch:
    """Ends a benchmark early: what is active is finished, nothing more is started."""

    def __init__(self):
        self.is_armed = False  # whether a run has begun: before that there is nothing to save
        self.num_presses = 0
        self._engine: Engine | None = None

    def press(self) -> None:
        """Stop; pressed again, what is active is ended too. A signal handler may call it."""
        self.num_presses += 1
        if self._engine is not None:
            self._engine.stop()

    def watch(self, engine: Engine | None) -> None:
        """Stop this engine when pressed; None when its run is over."""
        self._engine, self.is_armed = engine, True
        if engine is not None and self.num_presses:
            engine.stop()


@dataclass
class Outcome:
    """What came of one run."""

    figures: dict
    serving: dict
    sparse_cheaper_token_fraction: float
    is_whole: bool  # every request came to its end
    error: str | None = None


def run_continuous_bench(
    config: ContinuousBenchConfig,
    workload: RequestList | None = None,
    command: str = "dsd_continuous_bench",
    *,
    slo: dict[str, float] | None = None,
    timeline: Timeline | None = None,
    stop: StopSwitch | None = None,
    on_outputs=None,
) -> dict:
    """Run a workload continuously, and serially where that is asked for; returns the record.

    Parameters
    ----------
    config : ContinuousBenchConfig
        What to measure.
    workload : RequestList, optional
        The requests; those of the reference system by default.
    command : str
        The command line, for the record.
    slo : dict, optional
        Milliseconds that a good request may take (see `serving.metrics`).
    timeline : Timeline, optional
        Gets the steps of the continuous run.
    stop : StopSwitch, optional
        Ends the runs early.
    on_outputs : callable, optional
        Gets the outputs of the continuous run (see `CacheBackend`).

    Returns
    -------
    dict
        Under "results" all that is measured. When a backend failed, what was done until then, and
        "error": which request was lost.
    """
    workload = draw_requests(config) if workload is None else workload
    requests = as_requests(workload)
    source = {"name": workload.source.get("workload", "given"), "unit": workload.unit}
    source |= {key: value for key, value in workload.source.items() if key != "workload"}
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": {**asdict(config), "model": asdict(config.model)},
        "workload": {**source, "num_requests": len(requests)},
    }
    try:
        backend = choose_backend(config)
    except CudaUnavailable as error:
        label = "continuous_sparse" if config.is_sparse else "continuous_dense_gpu"
        results = {f"{label}_available": 0, "reason": str(error)}
        return record | {"environment": environment(), "results": results}
    bench = _Bench(config, requests, backend, slo, stop or StopSwitch())
    results = bench.run(timeline, on_outputs)
    return record | {"environment": environment(backend == "gpu"), "results": results}


@dataclass
class _Bench:
    """The runs of one workload, each with a cache of its own."""

    config: ContinuousBenchConfig
    requests: Sequence[Request]
    backend: str
    slo: dict[str, float] | None
    stop: StopSwitch
    budget: int | None = field(init=False)

    def run(self, timeline: Timeline | None, on_outputs) -> dict:
        """Return the results."""
        config = self.config
        self.budget = budget_pages(config, self.backend)
        num_pages = pool_pages(config, self.requests, self.budget)
        num_tokens = sum(request.new_tokens for request in self.requests)
        check_memory(config, num_pages, num_tokens, self.backend)
        with tqdm(total=1, desc="compiling", leave=False, disable=None):
            warm_up(config, self.backend)
        label = f"continuous_{'sparse' if config.is_sparse else 'dense_' + self.backend}"
        together = self._run(config, label, timeline, on_outputs)
        results = {"backend": self.backend, "kv_budget_pages": self.budget}
        results |= bus_gbps() if self.backend == "gpu" else {}
        results[f"{label}_available"] = 1
        results["total_generated_tokens"] = together.figures["generated_tokens"]
        results |= {f"{label}_{name}": value for name, value in together.figures.items()}
        results["sparse_cheaper_token_fraction"] = together.sparse_cheaper_token_fraction
        error, alone = together.error, None
        if config.serial and together.is_whole and not self.stop.num_presses:
            name = label.replace("continuous", "serial")
            alone = self._run(replace(config, max_active_requests=1), name, None, None)
            results |= {f"{name}_{key}": value for key, value in alone.figures.items()}
            error = alone.error
        results["serving"] = together.serving
        if error is not None:
            results["error"] = error
        return results | (_speedups(together, alone) if config.serial else {})

    def _run(self, config, label: str, timeline: Timeline | None, on_outputs) -> Outcome:
        """Run the workload once."""
        gc.collect()  # the cache of the run before: a cache and its device pool know each other
        num_pages, error = pool_pages(config, self.requests, self.budget), None
        prepared_ms, preadmit_ms, busy_ns = 0.0, 0.0, BUSY.ns
        start = perf_counter()
        tokens = make_tokens(config, self.requests, self.backend)
        if config.precompute_decode_payloads:
            prepared_ms = (perf_counter() - start) * 1e3
        runner = make_backend(config, self.backend, num_pages, tokens, self.requests, on_outputs)
        total = sum(request.new_tokens for request in self.requests)
        with tqdm(total=total, desc=label, unit="tok", leave=False, disable=None) as bar:
            engine = make_engine(config, runner, num_pages, timeline=timeline, on_step=bar.update)
            self.stop.watch(engine)
            try:
                if config.preadmit_prompts:
                    start = perf_counter()
                    engine.preadmit(self.requests)
                    preadmit_ms = (perf_counter() - start) * 1e3
                busy_ns = BUSY.ns
                engine.run(self.requests)
            except NumbadsdError as fault:  # what was done until then is a result
                error = str(fault)
            self.stop.watch(None)
        before = Before(prepared_ms, preadmit_ms, busy_ns)
        serving = serving_figures(config, engine, self.slo)
        return Outcome(
            run_figures(config, engine, runner, before), serving,
            sparse_cheaper_token_fraction(config, engine),
            error is None and not serving["not_started"] and not serving["cancelled"], error,
        )  # fmt: skip


def _speedups(together: Outcome, alone: Outcome | None) -> dict:
    """Return how much faster many requests are together; NaN unless both runs were whole."""
    speedups = {}
    is_known = alone is not None and alone.is_whole and alone.figures["generated_tokens"]
    for suffix in ("_including_admission", ""):  # the reference's own comes last
        key = f"tokens_per_second{suffix}"
        ratio = together.figures[key] / alone.figures[key] if is_known else NAN
        speedups[f"continuous_vs_serial_speedup{suffix}"] = ratio
    return speedups
