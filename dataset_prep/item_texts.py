"""The texts of items, read from a RecBole atomic `.item` file: which columns make them, and what they say."""

from __future__ import annotations

import csv
import difflib
import hashlib
import html
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter

from .errors import InputError

__all__ = ["AUTO_FIELDS", "read_item_texts", "text_columns", "text_digest"]

log = logging.getLogger(__name__)

AUTO_FIELDS = ["auto"]
SEPARATORS = " .,;:|/-"
_FEWEST_WORDS, _MOST_WORDS = (
    1.5,
    30.0,
)  # of a value, on average: an identifier or a number has fewer, a description more
_TITLES = ("title", "name")  # parts of the name of a column that is text whatever its length
_REPEATED = (
    0.95  # share of a column's values that stand whole in another column of the item, from which on it adds nothing
)


def text_columns(
    item_file: Path, fields: Sequence[str], item_field: str = "item_id", separator: str = "\t"
) -> list[str]:
    """The columns that make the text; for ``["auto"]`` those of the file that hold a few words.

    A column is taken if it is called a title or a name, or if its values have 1.5 to 30 words on average: an
    identifier, a link, a year or a price has fewer, a description more. A column whose values stand whole in those of
    another one adds nothing and stays out, and so do numbers (type float) and item ids.

    Args:
        item_file: as of `read_item_texts`.
        fields: columns, one template, or ``["auto"]``.
        item_field: column of the item tokens.
        separator: one character between columns.

    Returns:
        `fields` as they are, or the columns found, in file order.

    Raises:
        InputError: for ``["auto"]``, if the file cannot be read or has no such column.
    """
    if list(fields) != AUTO_FIELDS:
        return list(fields)
    rows = _read_rows(item_file, separator)
    _, header = next(rows, (1, []))
    names = [column.partition(":")[0] for column in header]
    kinds = [column.partition(":")[2] for column in header]
    at = [place for place, name in enumerate(names) if name != item_field and not kinds[place].startswith("float")]
    n_values: Counter[int] = Counter()
    n_words: Counter[int] = Counter()
    n_within: Counter[tuple[int, int]] = Counter()
    for _, row in rows:
        values = {place: _clean(row[place]) for place in at if place < len(row) and row[place].strip()}
        n_values.update(values.keys())
        n_words.update({place: len(value.split()) for place, value in values.items()})
        pairs = [(inner, outer) for inner in values for outer in values if inner != outer]
        n_within.update(pair for pair in pairs if values[pair[0]] in values[pair[1]])
    mean_words = {place: n_words[place] / n_values[place] for place in at if n_values[place]}
    text = [
        place
        for place, mean in mean_words.items()
        if any(part in names[place].lower() for part in _TITLES) or _FEWEST_WORDS <= mean <= _MOST_WORDS
    ]

    def adds_nothing(place: int, other: int) -> bool:
        return n_within[place, other] >= _REPEATED * n_values[place]

    def is_repeated(place: int, other: int) -> bool:
        if adds_nothing(other, place):  # they are the same: the first one stays
            return other < place and adds_nothing(place, other)
        return adds_nothing(place, other)

    taken = [place for place in text if not any(is_repeated(place, other) for other in text if other != place)]
    if not taken:
        raise InputError(
            f"{item_file}: text_fields: auto finds no column of a few words; it has {', '.join(names) or 'none'}; "
            "name the columns that make the text in text_fields"
        )
    left = [f"{names[place]} ({mean_words.get(place, 0):.1f} words)" for place in at if place not in taken]
    log.info(
        "%s: text_fields: auto takes %s%s",
        item_file,
        ", ".join(names[place] for place in taken),
        f"; not {', '.join(left)}" if left else "",
    )
    return [names[place] for place in taken]


def read_item_texts(
    item_file: Path,
    fields: Sequence[str],
    item_field: str = "item_id",
    separator: str = "\t",
    tokens: Collection[str] | None = None,
) -> dict[str, str]:
    r"""Read the text of each item from a RecBole atomic `.item` file.

    The file is split as RecBole splits it (UTF-8, `separator`, a column that starts with a double quote ends
    at the next one), so both see the same items. No word stands for a missing value: "NA" is text.

    Args:
        item_file: the file; its first line is a header such as ``item_id:token\ttitle:token_seq``.
        fields: columns that make the text, without their types; or one template, such as "{title}. {brand}", of which
            a column without a value is left out, together with what stands between it and the column before.
        item_field: column of the item tokens.
        separator: one character between columns.
        tokens: read the texts of these items only, without a word on those that are empty or not there; None: of all.

    Returns:
        Token -> text, in file order. A text is the non-empty values of `fields`, joined by ". " or as in the template,
        with HTML entities decoded and each run of white space made one blank. A warning counts empty texts.

    Raises:
        InputError: if the file or a field is missing, an item occurs twice, or a line cannot be read.
    """
    rows = _read_rows(item_file, separator)
    _, header = next(rows, (1, []))
    names = [column.partition(":")[0] for column in header]
    if isinstance(fields, str) or not fields:
        raise InputError(f"text_fields must be a non-empty list of columns of {item_file}, not {fields!r}")
    pieces = _pieces(fields)
    missing = [field for field in (item_field, *(field for _, field in pieces)) if field not in names]
    if missing:
        close = difflib.get_close_matches(missing[0], names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"{item_file}: no column {missing[0]!r}{hint}; it has {', '.join(names) or 'none'}; "
            "name existing columns in text_fields, or add the column"
        )
    token_column = names.index(item_field)
    text_columns = [(before, names.index(field)) for before, field in pieces]

    texts: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for line, row in rows:
        if len(row) > len(names):
            raise InputError(
                f"{item_file}, line {line}: {len(row)} columns, but the header has {len(names)}; "
                "replace the separator inside a text by a blank"
            )
        token = row[token_column] if token_column < len(row) else ""
        if not token:
            raise InputError(f"{item_file}, line {line}: the item id is empty; remove the line or fill it in")
        if tokens is not None and token not in tokens:
            continue
        if token in texts:
            raise InputError(
                f"{item_file}, line {line}: item {token!r} was on line {line_of[token]} already; keep one line per item"
            )
        texts[token] = _joined([(before, _clean(row[at]) if at < len(row) else "") for before, at in text_columns])
        line_of[token] = line
    if tokens is not None:
        return texts
    if not texts:
        raise InputError(f"{item_file}: no items, only a header; add one line per item")
    empty = [token for token, text in texts.items() if not text]
    if empty:
        log.warning(
            "%s: %d of %d items have no text in %s, for example %s",
            item_file,
            len(empty),
            len(texts),
            ", ".join(fields),
            ", ".join(empty[:3]),
        )
    return texts


def _pieces(fields: Sequence[str]) -> list[tuple[str, str]]:
    """Columns, each with what stands before it.

    Raises:
        InputError: for a template that is not understood.
    """
    if len(fields) != 1 or not any(brace in fields[0] for brace in "{}"):
        return [(". " if number else "", field) for number, field in enumerate(fields)]
    template = fields[0]
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:  # a brace without its partner
        raise InputError(
            f"text_template: {template!r}: {error}; write columns in braces: {{title}}. {{brand}}"
        ) from error
    if not all(field and not spec and not how for _, field, spec, how in parsed):
        raise InputError(
            f"text_template: {template!r} must be columns in braces with words between them, and end with a column: "
            "{title}. {brand}"
        )
    return [(before, str(field)) for before, field, _, _ in parsed]


def _joined(values: Sequence[tuple[str, str]]) -> str:
    """The values that are not empty, each behind what stands before it; the first of them without its separators."""
    kept = [(number, before, value) for number, (before, value) in enumerate(values) if value]
    words = [before + value for _, before, value in kept]
    if kept and kept[0][0] > 0:
        words[0] = kept[0][1].lstrip(SEPARATORS) + kept[0][2]
    return "".join(words)


def text_digest(texts: Mapping[str, str]) -> str:
    """Return the sha256 (hex) over all items in the order of their tokens; whatever the order of `texts`."""
    digest = hashlib.sha256()
    for token in sorted(texts):
        digest.update(f"{token}\0{texts[token]}\n".encode())
    return digest.hexdigest()


def _read_rows(item_file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, columns) of each line that is not blank, the header first."""
    item_file = Path(item_file)
    if not item_file.is_file():
        raise InputError(f"item file {item_file} does not exist; texts are read from a RecBole `.item` file")
    with item_file.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter=separator)  # as pandas' python engine, which is strict besides
        first = 1
        try:
            for row in reader:
                if any(separator in value and "\n" in value for value in row):
                    raise InputError(
                        f"{item_file}, line {first}: a column opens with a double quote that swallows the "
                        f"lines up to {reader.line_num}; remove the quote (RecBole stumbles over it, too)"
                    )
                if row:
                    yield first, row
                first = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{item_file}, line {reader.line_num}: {error}; shorten or repair it") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{item_file}, after line {reader.line_num}: not UTF-8: {error}; convert it") from error


def _clean(value: str) -> str:
    return " ".join(html.unescape(value).split())
