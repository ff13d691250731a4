"""Small pieces of HTML. Whatever comes from data goes through `escape`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_pad.report.runs import Stat


def escape(text: object) -> str:
    """Text for HTML, inside an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def embed(content: Any) -> str:
    """JSON for a ``<script>`` element: no character in it can end the element or open a comment."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


MISSING = "\u2013"  # a dash
_SHORT = 26  # characters that are kept on one line
_MINUS = "\u2212"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: not escaped yet.
        after: text behind it, set small.
        value: a number to sort by; None for text, and for a number that is not there.
        best: whether it is the best of its column.
        is_number: whether it is set to the right.
    """

    text: str
    value: float | None = None
    after: str = ""
    best: bool = False
    is_number: bool = True


def word(text: object) -> Cell:
    """A cell of text."""
    return Cell(str(text), is_number=False)


def number(value: Stat | float | None, digits: int = 2, scale: float = 1.0) -> Cell:
    """A cell of a number, or of a mean with its deviation."""
    if value is None:
        return Cell(MISSING)
    stat = value if isinstance(value, Stat) else Stat(float(value), None, 1)
    text = f"{round(scale * stat.mean, digits) + 0.0:,.{digits}f}".replace("-", _MINUS)  # + 0.0: no minus before zero
    deviation = "" if stat.deviation is None else f"± {scale * stat.deviation:,.{digits}f}"
    return Cell(text, scale * stat.mean, deviation)


def percent(value: Stat | float | None) -> Cell:
    """A cell of a share, in %."""
    return number(value, 2, 100.0)


def with_best(rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The same rows; in each column of numbers the highest one is marked, equal ones too, if there are two rows."""
    if len(rows) < 2:
        return [list(row) for row in rows]
    columns = zip(*rows, strict=True)
    highest = [max((cell.value for cell in column if cell.value is not None), default=None) for column in columns]
    return [
        [
            replace(cell, best=cell.value is not None and cell.value == top)
            for cell, top in zip(row, highest, strict=True)
        ]
        for row in rows
    ]


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], sortable: bool = True) -> str:
    """A table in a box of its own that scrolls sideways where the screen is narrow.

    Args:
        caption: what the table shows.
        heads: of the columns; the first column names the row.
        rows: as many cells as heads each.
        sortable: whether a click on a head sorts.
    """
    is_number = [any(row[place].is_number for row in rows) for place in range(len(heads))]
    head = "".join(
        f'<th scope="col"{" class=number" if numeric else ""}>{escape(text)}</th>'
        for text, numeric in zip(heads, is_number, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(cell, first=not place) for place, cell in enumerate(row)) + "</tr>" for row in rows
    )
    mark = " data-sortable" if sortable and len(rows) > 1 else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{mark}><caption><span>{escape(caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: Cell, first: bool) -> str:
    name, scope = ("th", ' scope="row"') if first else ("td", "")
    kind = " class=number" if cell.is_number else " class=short" if len(cell.text) <= _SHORT else ""
    sort = "" if cell.value is None else f' data-value="{cell.value:.10g}"'
    text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
    text += f" <small>{escape(cell.after)}</small>" if cell.after else ""
    return f"<{name}{scope}{kind}{sort}>{text}</{name}>"


def details(summary: str, content: str, is_open: bool = False) -> str:
    """A part that folds."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>\n{content}\n</details>"


def section(identity: str, title: str, content: str) -> str:
    """A section with a heading that links reach."""
    head = f'<h2 id="{identity}-title">{escape(title)}</h2>'
    return f'<section id="{identity}" aria-labelledby="{identity}-title">\n{head}\n{content}\n</section>'


def paragraph(text: str) -> str:
    """A paragraph; the text is escaped."""
    return f"<p>{escape(text)}</p>"
