"""Figures as files: PNG and SVG with the same bytes every time, written whole or not at all."""

from io import BytesIO
from pathlib import Path

from numbadsd.files import replacing
from numbadsd.plots._style import PNG_DPI, house_style

KINDS = ("png", "svg")


def render(figure, kind: str) -> bytes:
    """Return a figure as a file of a kind, without the date."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind}, want one of {', '.join(KINDS)}")
    metadata = {"Date": None} if kind == "svg" else None
    buffer = BytesIO()
    with house_style():
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def save(figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG into a folder; returns their paths."""
    contents = {folder / f"{stem}.{kind}": render(figure, kind) for kind in KINDS}
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        with replacing(path, binary=True) as file:
            file.write(content)
    return list(contents)
