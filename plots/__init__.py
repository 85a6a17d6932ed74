"""Figures that answer one question each, from the records of a sweep.

Importing this is cheap: matplotlib is imported when the first figure is drawn.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# Each experiment, and the module here that draws it. Own sweeps are called "grid".
PLOTS = {
    "00_backend_total_time": "plot_00_backend_total_time",
    "01_decode_context_length_sweep": "plot_01_decode_context_length_sweep",
    "02_decode_batch_scaling_sweep": "plot_02_decode_batch_scaling_sweep",
    "03_decode_topk_sparsity_sweep": "plot_03_decode_topk_sparsity_sweep",
    "04_decode_page_size_sweep": "plot_04_decode_page_size_sweep",
    "05_continuous_batching_load_sweep": "plot_05_continuous_batching_load_sweep",
    "06_continuous_runtime_options_ablation": "plot_06_continuous_runtime_options_ablation",
    "07_attention_backend_breakdown": "plot_07_attention_backend_breakdown",
    "grid": "plot_grid",
}


def draw_experiment(name: str, points: Sequence):
    """Return the figure of an experiment.

    Parameters
    ----------
    name : str
        A key of `PLOTS`.
    points : sequence of PointResult
        Its points, as ``numbadsd.bench.sweep.records.read_experiment`` returns them. Points that
        failed are left out and counted in the caption.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        When there is no such experiment, or none of its points was measured.
    """
    if name not in PLOTS:
        raise ValueError(f"experiment: got {name}, want one of {', '.join(PLOTS)}")
    return import_module(f"{__name__}.{PLOTS[name]}").draw(list(points))


def figure_svg(name: str, points: Sequence) -> str:
    """Return the figure of an experiment as an SVG document: the same text every time."""
    return import_module(f"{__name__}._files").render(draw_experiment(name, points), "svg").decode()


def save_figure(figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` into a folder, which is made; returns their paths.

    Each file is whole or, when the disk is full, not touched (OSError).
    """
    return import_module(f"{__name__}._files").save(figure, Path(folder), stem)
