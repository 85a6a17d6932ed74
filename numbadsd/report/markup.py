"""Pieces of HTML: text, tables and folded parts. Whatever is not markup is escaped here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

MISSING = "–"
MOST_DECIMALS = 4
SHORT_TEXT = 32  # characters that stay on one line also where a column wraps


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers with so many decimals, or text, which may wrap when long.

    A column of milliseconds has more decimals where its smallest value needs them.
    """

    header: str
    unit: str = ""
    decimals: int | None = None
    wraps: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is aligned and sorted as numbers."""
        return self.decimals is not None


def text(value) -> str:
    """Return anything as escaped text, fit for an attribute as well."""
    return escape(str(value), quote=True)


def number(value: float | None, decimals: int = 0) -> str:
    """Return a number as one reads it, or a dash where there is none."""
    return MISSING if value is None else f"{value:,.{decimals}f}"


def join(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def element(tag: str, content: str, **attributes) -> str:
    """Return an element around HTML; `class_` is class, an attribute of None is left out."""
    pairs = ((name.rstrip("_").replace("_", "-"), v) for name, v in attributes.items())
    opening = "".join([tag, *(f' {name}="{text(v)}"' for name, v in pairs if v is not None)])
    return f"<{opening}>{content}</{tag}>"


def paragraph(content: str, class_: str | None = None) -> str:
    """Return a paragraph of escaped text."""
    return element("p", text(content), class_=class_)


def bullets(items: Iterable[str]) -> str:
    """Return a list of escaped texts."""
    return element("ul", "".join(element("li", text(item)) for item in items))


def folded(summary: str, content: str, class_: str | None = None) -> str:
    """Return HTML that opens with a click on its summary."""
    return element("details", element("summary", text(summary)) + content, class_=class_)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence]) -> str:
    """Return a sortable table in a box that scrolls when it is too wide.

    The first cell of a row is its heading. A column in which every value is None is left out.
    """
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    columns = [_fitted(columns[i], [row[i] for row in rows]) for i in kept]
    head = element("tr", "".join(map(_header_cell, columns)))
    body = []
    for row in rows:
        cells = [_cell(column, row[i]) for column, i in zip(columns, kept, strict=True)]
        cells[0] = f'<th scope="row"{cells[0][3:-3]}th>'
        body.append(element("tr", "".join(cells)))
    inner = (
        element("caption", text(caption))
        + element("thead", head)
        + element("tbody", "\n".join(body))
    )
    whole = element("table", inner, class_="sortable")
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _fitted(column: Column, values: Sequence) -> Column:
    """Return a column that shows two digits of its smallest time: on a GPU those are small."""
    times = [value for value in values if value] if column.unit == "ms" else []
    decimals = column.decimals
    while times and decimals < MOST_DECIMALS and min(map(abs, times)) < 9.5 * 10.0**-decimals:
        decimals += 1
    return replace(column, decimals=decimals)


def _header_cell(column: Column) -> str:
    unit = f" {element('span', text(column.unit), class_='unit')}" if column.unit else ""
    words = [  # a hyphen is no place to break such short words
        element("span", text(word), class_="word") if "-" in word else text(word)
        for word in column.header.split(" ")
    ]
    button = element("button", " ".join(words) + unit, type="button")
    class_ = "number" if column.is_number else None
    return element("th", button, scope="col", aria_sort="none", class_=class_)


def _cell(column: Column, value) -> str:
    if not column.is_number:
        class_ = "long" if column.wraps and len(str(value)) > SHORT_TEXT else None
        return element("td", MISSING if value is None else text(value), class_=class_)
    data_value = "" if value is None else repr(float(value))
    shown = number(value, column.decimals)
    return element("td", text(shown), class_="number", data_value=data_value)


def pairs(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    body = "".join(
        element("tr", element("th", text(name), scope="row") + element("td", text(value)))
        for name, value in rows
    )
    inner = element("caption", text(caption)) + element("tbody", body)
    return element("div", element("table", inner, class_="pairs"), class_="scroll")
