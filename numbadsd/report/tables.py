"""The four tables of the answer."""

from collections.abc import Sequence

from numbadsd.bench.verdict import CLEAR_MARGIN, NEAR_LIMIT
from numbadsd.report.answer import Crossover, Floors, Kept, Throughput
from numbadsd.report.headline import fairness
from numbadsd.report.markup import Column, paragraph, table

_KIND_TEXTS = {
    "crosses": "sparse from there on",
    "always_sparse": "sparse at every context",
    "always_dense": "dense at every context",
    "crosses_often": "several crossings",
}


def _on(backends: Sequence[str]) -> list[str | None]:
    """Return a label for each row; none where all rows have the same backend."""
    return [backend.upper() if len(set(backends)) > 1 else None for backend in backends]


def crossover_table(rows: Sequence[Crossover]) -> str:
    """Return where sparse overtakes dense, by batch."""
    columns = [
        Column("batch", decimals=0),
        Column("on"),
        Column("crossing", "tokens", 0),
        Column("measured between"),
        Column("faster"),
        Column(f"over {CLEAR_MARGIN - 1:.0%} faster from", "tokens", 0),
        Column("largest context", "tokens", 0),
        Column("speed-up there", "×", 2),
    ]
    cells = [
        (
            row.batch, on, row.crossing.x,
            f"{row.between[0]:,} and {row.between[1]:,}" if row.between else None,
            _KIND_TEXTS[row.crossing.kind], row.clear_from, row.contexts[1], row.speedup,
        )
        for row, on in zip(rows, _on([row.backend for row in rows]), strict=True)
    ]  # fmt: skip
    note = (
        "Medians of the whole step, interpolated in log-log space between the two measured "
        "contexts; speed-up is dense over sparse."
    )
    return table("Crossover by batch", columns, cells) + paragraph(note, "note")


def floor_table(rows: Sequence[Floors]) -> str:
    """Return dense and sparse beside the time that their bytes take."""
    columns = [
        Column("batch", decimals=0),
        Column("on"),
        Column("context", "tokens", 0),
        Column("dense", "ms", 3),
        Column("dense floor", "ms", 3),
        Column("dense reads at", "of bandwidth", 2),
        Column("sparse", "ms", 3),
        Column("sparse floor", "ms", 3),
        Column("sparse reads at", "of bandwidth", 2),
        Column("speed-up", "×", 2),
        Column("remark", wraps=True),
    ]
    cells = []
    for row, on in zip(rows, _on([row.pair.backend for row in rows]), strict=True):
        dense, sparse = row.pair.dense, row.pair.sparse
        cells.append((
            row.batch, on, row.context, dense.median_ms, dense.floor_ms, dense.fraction,
            sparse.median_ms, sparse.floor_ms, sparse.fraction, row.pair.speedup, fairness(dense),
        ))  # fmt: skip
    note = (
        "Floor: the bytes of a path over the bandwidth measured in the same run. A dense path "
        f"below {NEAR_LIMIT:.1f} of it is no fair opponent."
    )
    return table("Dense and sparse against their floors", columns, cells) + paragraph(note, "note")


def quality_table(rows: Sequence[Kept]) -> str:
    """Return what is kept for each number of pages, beside the speed."""
    columns = [
        Column("k", "pages", 0),
        Column("on"),
        Column("speed-up", "×", 2),
        Column("page recall", decimals=3),
        Column("attention mass", decimals=3),
        Column("output error", "relative", 3),
        Column("density", decimals=4),
    ]
    cells = [
        (row.top_k_pages, on, row.pair.speedup, *row.quality.values())
        for row, on in zip(rows, _on([row.pair.backend for row in rows]), strict=True)
    ]
    note = (
        "Page recall: share of the truly best pages that was chosen. Attention mass: softmax "
        "weight on the chosen tokens. Output error: norm of the difference to dense over the norm "
        "of dense. Density: tokens read over tokens held."
    )
    return table("Quality beside speed", columns, cells) + paragraph(note, "note")


def throughput_table(rows: Sequence[Throughput]) -> str:
    """Return the tokens a second of continuous batching, with and without what is before it."""
    columns = [
        Column("prompt", "tokens", 0),
        Column("path"),
        Column("active at most", "requests", 0),
        Column("in the loop", "tokens/s", 0),
        Column("against serial", "×", 2),
        Column("with admission", "tokens/s", 0),
        Column("against serial", "×", 2),
    ]
    cells = [
        (
            row.prompt_tokens, row.path, row.max_active, row.in_loop, row.speedup,
            row.with_admission, row.speedup_with_admission,
        )
        for row in rows
    ]  # fmt: skip
    note = (
        "The number of active requests with the most tokens a second in the loop. With admission: "
        "the prompts and payloads prepared before the loop count as well. Serial: the same "
        "requests, one at a time."
    )
    return table("Continuous throughput both ways", columns, cells) + paragraph(note, "note")
