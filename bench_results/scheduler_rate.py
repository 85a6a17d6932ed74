"""How many steps a second the scheduler plans when nothing else is done: its own cost.

    python bench_results/scheduler_rate.py --out FILE.jsonl

Requests with prompts of 100 to 2,000 tokens and 100 to 1,000 new ones decode; whoever finishes is
replaced, so that the batch stays full; making requests does not count. A sample is a window of a
quarter of a second. One record a case.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import click

from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.serving.request import Request
from numbadsd.serving.scheduler import Scheduler, SchedulerConfig
from numbadsd.timing import sample_statistics

WINDOW_S, WINDOWS = 0.25, 7
BATCH, SETTLING_BATCHES = 100, 15  # steps; batches until the mix of ages is steady
PAGES_OF_ONE = 100  # a budget of so many pages for each active request: about half are short
CASES = {
    "fifo": lambda active: {},
    "pack, short of pages": lambda active: {
        "admission": "pack", "capacity_pages": active * PAGES_OF_ONE,
    },
    "preempt, short of pages": lambda active: {
        "preempt": True, "capacity_pages": active * PAGES_OF_ONE,
    },
    "chunked prefill": lambda active: {
        "prefill": "chunked", "prefill_chunk_tokens": 64 * active,
    },
}  # fmt: skip


class Load:
    """Keeps a scheduler full."""

    def __init__(self, config: SchedulerConfig):
        self._random, self._count = random.Random(7), 0
        self.scheduler = Scheduler(config)
        for _ in range(2 * config.max_active):
            self.scheduler.add(self.request(1))

    def request(self, fewest_tokens: int = 100) -> Request:
        """Return a new request."""
        self._count += 1
        lengths = self._random.randint(100, 2000), self._random.randint(fewest_tokens, 1000)
        return Request(self._count, 0.0, *lengths)

    def time_s(self) -> float:
        """Return the time of `BATCH` steps, in which those who finish are replaced."""
        spare = [self.request() for _ in range(4 * self.scheduler.config.max_active)]
        start = perf_counter()
        for _ in range(BATCH):
            for _ in self.scheduler.complete(self.scheduler.plan()):
                self.scheduler.add(spare.pop())
        return perf_counter() - start


def measure(active: int, options: dict) -> dict:
    """Return the steps a second of one case, as statistics of its windows."""
    config = SchedulerConfig(max_active=active, **options)
    load, rates = Load(config), []
    for _ in range(SETTLING_BATCHES):
        load.time_s()
    for _ in range(WINDOWS):
        steps, time_s = 0, 0.0
        while time_s < WINDOW_S:
            time_s += load.time_s()
            steps += BATCH
        rates.append(steps / time_s)
    return {"config": asdict(config), "steps_per_second": sample_statistics(rates)}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    """Measure every case and write one line of JSON for each."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for active in (64, 1024):
            for case, options in CASES.items():
                record = {
                    "schema_version": SCHEMA_VERSION, "bench": "scheduler", "case": case,
                    "environment": environment(), **measure(active, options(active)),
                }  # fmt: skip
                file.write(json.dumps(record) + "\n")
                rate = record["steps_per_second"]
                click.echo(f"{active} active, {case}: {rate['median']:,.0f} steps/s "
                           f"(least of {WINDOWS} windows {rate['min']:,.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
