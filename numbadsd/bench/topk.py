"""`dsd_topk_bench`: top-k on its own, beside the read of its scores and other libraries' top-k."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.bench.topk_cases import TopkCase, check_memory, make_case
from numbadsd.bench.topk_contenders import (
    Contender,
    Memory,
    Numpy,
    OwnOnCpu,
    OwnOnGpu,
    Work,
    check_device_memory,
    flush_bytes,
    selections_agree,
)
from numbadsd.config import KV_DTYPES, TopkBenchConfig
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.timing import sample_statistics

OWN = "numbadsd"


@dataclass
class Entry:
    """One contender at one case: its work and samples, or why it has none."""

    on_gpu: bool
    reason: str | None = None
    work: Work | None = None
    agrees: bool | None = None
    samples_ms: list[float] = field(default_factory=list)


def choose_device(name: str) -> str:
    """Return "cpu" or "gpu"; auto is a GPU where one is usable, and never the simulator.

    Raises CudaUnavailable when "gpu" is named and none is usable.
    """
    problem = why_unavailable() if name != "cpu" else None
    if name == "gpu" and problem is not None:
        raise CudaUnavailable(*problem)
    if name == "auto":
        return "cpu" if SIMULATED or problem is not None else "gpu"
    return name


def run_topk_bench(
    config: TopkBenchConfig,
    command: str = "dsd_topk_bench",
    other_contenders: Callable[[bool], Sequence[Contender]] = lambda on_gpu: (),
) -> dict:
    """Measure every case of a configuration; returns the record.

    Parameters
    ----------
    config : TopkBenchConfig
        What to measure.
    command : str
        The command line, for the record.
    other_contenders : callable
        Given whether scores lie on a GPU, returns what to compare with beside NumPy.
    """
    device = choose_device(config.device)
    on_gpu = device == "gpu"
    check_memory(config, flush_bytes())
    if on_gpu:
        element_bytes = KV_DTYPES[config.dtype].itemsize
        check_device_memory(config.rows, config.length, config.k, element_bytes)
    contenders = [Numpy(), *other_contenders(on_gpu)]
    memory = Memory(on_gpu)
    cases = []
    total = len(config.cases) * (config.warmup + config.iterations)
    with tqdm(total=total, desc="measuring", leave=False, disable=None) as bar:
        for names in config.cases:
            case = make_case(config, *names)
            entries = prepare(config, case, contenders, on_gpu)
            take_samples(config, entries, memory, bar)
            cases.append((case.lengths_name, case.values_name, case.num_bytes, entries))
            del case  # before the next one is made
            for entry in entries.values():
                entry.work = None
    versions = {contender.name: contender.version for contender in contenders}
    read, copy = memory.read_gbps, memory.copy_gbps
    bandwidth = {
        "read_gbps": sample_statistics(read) if read else None,
        "copy_gbps": sample_statistics(copy) if copy else None,
    }
    roof_gbps = bandwidth["copy_gbps" if on_gpu else "read_gbps"]["median"]
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": {**asdict(config), "cases": [list(names) for names in config.cases]},
        "environment": environment(on_gpu) | versions,
        "bandwidth": bandwidth,
        "cases": [_case_record(config, device, roof_gbps, *case) for case in cases],
    }
    record["config"]["threads"] = record["environment"]["num_threads"]
    return record


def prepare(
    config: TopkBenchConfig, case: TopkCase, contenders: Sequence[Contender], on_gpu: bool
) -> dict[str, Entry]:
    """Run every contender once; only those whose selection agrees with ours are to be timed."""
    arguments = case.scores, case.lengths, config.k, config.order
    own = Entry(on_gpu, work=(OwnOnGpu if on_gpu else OwnOnCpu)(*arguments))
    own.work.time_ms()
    entries = {OWN: own}
    for contender in contenders:
        entry = entries[contender.name] = Entry(contender.on_gpu, contender.reason)
        if entry.reason is not None:
            continue
        try:
            work = contender.prepare(*arguments)
            work.time_ms()
            indices = work.indices()
        except Exception as error:  # another library's failure is its result, and not ours
            entry.reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        entry.agrees = selections_agree(case, config.k, own.work.indices(), indices)
        entry.work = work if entry.agrees else None
    return entries


def take_samples(
    config: TopkBenchConfig, entries: dict[str, Entry], memory: Memory, bar: tqdm
) -> None:
    """Take the samples of all in turn, a measurement of memory before each one."""
    for i in range(config.warmup + config.iterations):
        is_kept = i >= config.warmup
        for entry in entries.values():
            if entry.work is None:
                continue
            memory.measure(entry.on_gpu, is_kept)
            ms = entry.work.time_ms()
            if is_kept:
                entry.samples_ms.append(ms)
        bar.update()


def _case_record(
    config: TopkBenchConfig,
    device: str,
    roof_gbps: float,
    lengths_name: str,
    values_name: str,
    num_bytes: int,
    entries: dict[str, Entry],
) -> dict:
    """Return what one case gave, in figures that follow from its medians."""
    own_ms = sample_statistics(entries[OWN].samples_ms)
    median_ms = own_ms["median"]
    floor_ms = num_bytes / roof_gbps / 1e6
    return {
        "device": device,
        "lengths": lengths_name,
        "values": values_name,
        "bytes": num_bytes,
        "ms": own_ms,
        "rows_per_s": config.rows / median_ms * 1e3,
        "gbps": num_bytes / median_ms / 1e6,
        "floor_ms": floor_ms,
        "floors": median_ms / floor_ms,
        "comparators": {
            name: _comparator_record(entry, median_ms)
            for name, entry in entries.items()
            if name != OWN
        },
    }


def _comparator_record(entry: Entry, own_median_ms: float) -> dict:
    """Return how another top-k did; one that selects otherwise has no time."""
    ms = sample_statistics(entry.samples_ms) if entry.samples_ms else None
    return {
        "available": entry.reason is None,
        "reason": entry.reason,
        "ms": ms,
        "speedup": ms["median"] / own_median_ms if ms else None,
        "agrees": entry.agrees,
    }
