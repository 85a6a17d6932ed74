"""A page without matplotlib: figures are what the plots' own tests look at."""

import pytest

from numbadsd import plots
from numbadsd.report import build_page
from tests.report.results import FIGURE, write_results


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Stand in for the figures; returns the experiments that were drawn."""
    names = []

    def draw(name, points):
        names.append(name)
        if not any(point.ok for point in points):
            raise ValueError(f"no measured point in {name}")
        return FIGURE

    monkeypatch.setattr(plots, "figure_svg", draw)
    return names


@pytest.fixture
def page_of(tmp_path):
    """Return a function that builds the page of a sweep with some lines."""
    return lambda *lines: build_page(write_results(tmp_path / "made", lines or None))
