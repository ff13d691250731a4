"""The texts of items, read from a RecBole atomic `.item` file: which columns make them, and what they say."""

from __future__ import annotations

import csv
import hashlib
import html
import logging
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from string import Formatter

from .errors import InputError
from .header import rows_with_lines
from .pick import nearest

__all__ = ["AUTO_FIELDS", "ItemFile", "items_without_line", "read_item_texts", "text_columns", "text_digest"]

log = logging.getLogger(__name__)

AUTO_FIELDS = ["auto"]
SEPARATORS = " .,;:|/-"
_SAMPLED_LINES = 20_000  # lines that `auto` looks at
_FEWEST_WORDS, _MOST_WORDS = 1.5, 30.0  # of a value, on average
_TITLES, _TITLE_WORDS = ("title", "name"), 0.5  # parts of the name of a column of which fewer words are asked
_WORDS_OF_ALL = 0.5  # share of what stands between blanks that must be words
_FILLED = 0.1  # share of the items that must have a value
_MOST_WITHOUT_LINE = 0.5  # share of the items of a dataset
_REPEATED = 0.95  # share of a column's values that stand whole in another column, from which on it adds nothing
_OBJECT, _OBJECTS = ("{", "[{"), 0.5  # how JSON objects begin, and what share of a column makes it one of them
_WITHOUT_TEXTS = "PAD runs without texts by --phases=pretrain,finetune --experts=rec,markov"
_WORD = re.compile(r"[^\w]*[^\W\d_]+(?:['\u2019&.-]+[^\W\d_]+)*[^\w]*")  # letters, no digit, with punctuation around it
_IDEOGRAM = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # two of them count as a word


@dataclass(frozen=True)
class ItemFile:
    """A RecBole atomic `.item` file.

    Attributes:
        path: where it is; it may be missing.
        item_field: column of the item tokens.
        separator: one character between columns.
    """

    path: Path
    item_field: str = "item_id"
    separator: str = "\t"

    def __str__(self) -> str:
        return str(self.path)


def text_columns(item_file: ItemFile, fields: Sequence[str]) -> list[str]:
    """The columns that make the text; for ``["auto"]`` those of the file that hold a few words.

    Words are letters of any script: what stands between blanks and holds a digit or a slash, such as an id, a link, a
    price or a date, is none, and a column in which half are of this kind is no text. A text has 1.5 to 30 words on
    average; a column whose name holds "title" or "name" may have more, or 0.5, and any number of other things beside
    them ("Intel i7-9700K 3.6GHz LGA1151 CPU"). Where no column is like that, any with words will do, a description for
    one. A column that nine of ten items leave empty, one of JSON objects, and one whose values stand whole in those of
    another, stay out; so do numbers (type float) and item ids. The first 20,000 lines are looked at.

    Args:
        item_file: the file.
        fields: columns, one template, or ``["auto"]``.

    Returns:
        `fields` as they are, or the columns found, in file order.

    Raises:
        InputError: for ``["auto"]``, if the file cannot be read or has no such column.
    """
    if list(fields) != AUTO_FIELDS:
        return list(fields)
    stat = item_file.path.stat() if item_file.path.is_file() else None
    return list(_text_columns(item_file, stat and (stat.st_size, stat.st_mtime_ns)))


@lru_cache(maxsize=16)
def _text_columns(item_file: ItemFile, stat: object) -> tuple[str, ...]:
    """The columns that `auto` finds in a file of this size and time (`stat`); says so, once."""
    rows = _read_rows(item_file)
    _, header = next(rows, (1, []))
    names = [column.partition(":")[0] for column in header]
    kinds = [column.partition(":")[2] for column in header]
    places = [n for n, name in enumerate(names) if name != item_file.item_field and not kinds[n].startswith("float")]
    lines = [
        {place: _clean(row[place]) for place in places if place < len(row) and row[place].strip()}
        for _, row in islice(rows, _SAMPLED_LINES)
    ]
    values = {place: [line[place] for line in lines if place in line] for place in places}
    mean_words = {place: sum(map(_n_words, own)) / max(len(own), 1) for place, own in values.items()}
    is_title = {place: any(part in names[place].lower() for part in _TITLES) for place in places}
    with_words = [
        place
        for place, own in values.items()
        if own
        and len(own) >= _FILLED * len(lines)
        and mean_words[place] >= _TITLE_WORDS
        and (
            is_title[place] or mean_words[place] >= _WORDS_OF_ALL * sum(len(value.split()) for value in own) / len(own)
        )
        and sum(value.startswith(_OBJECT) for value in own) < _OBJECTS * len(own)
    ]
    text = [
        place for place in with_words if is_title[place] or _FEWEST_WORDS <= mean_words[place] <= _MOST_WORDS
    ] or with_words
    taken = [place for place in text if not any(_adds_nothing(lines, place, other) for other in text if other != place)]
    if not taken:
        raise InputError(
            f"{item_file}: text_fields: auto finds no column of words; it has {', '.join(names) or 'none'}; name the "
            f"columns that make the text in text_fields. {_WITHOUT_TEXTS}"
        )
    left = [f"{names[place]} ({mean_words[place]:.1f} words)" for place in places if place not in taken]
    log.info(
        "%s: text_fields: auto takes %s%s",
        item_file,
        ", ".join(names[place] for place in taken),
        f"; not {', '.join(left)}" if left else "",
    )
    return tuple(names[place] for place in taken)


def _n_words(text: str) -> int:
    """How many words of letters a text has; in scripts without blanks between words, two ideograms are one."""
    if not text.isascii():  # marks that are written onto a letter are no letters
        text = "".join(letter for letter in text if not unicodedata.category(letter).startswith("M"))
    n_ideograms = len(_IDEOGRAM.findall(text))
    parts = _IDEOGRAM.sub(" ", text).split() if n_ideograms else text.split()
    return -(-n_ideograms // 2) + sum("/" not in part and bool(_WORD.fullmatch(part)) for part in parts)


def _adds_nothing(lines: Sequence[Mapping[int, str]], place: int, other: int) -> bool:
    """Whether a column stands whole in another one; of two that are the same, the first one does not count as such."""

    def is_within(inner: int, outer: int) -> bool:
        both = [inner in line and line[inner] in line.get(outer, "") for line in lines]
        return sum(both) >= _REPEATED * sum(inner in line for line in lines)

    return is_within(place, other) and (other < place or not is_within(other, place))


def read_item_texts(
    item_file: ItemFile, fields: Sequence[str], tokens: Collection[str] | None = None
) -> dict[str, str]:
    r"""Read the text of each item.

    The file is split as RecBole splits it (UTF-8, the separator, a column that starts with a double quote ends
    at the next one), so both see the same items. No word stands for a missing value: "NA" is text.

    Args:
        item_file: the file; its first line is a header such as ``item_id:token\ttitle:token_seq``.
        fields: columns that make the text, without their types; or one template, such as "{title}. {brand}", of which
            a column without a value is left out, together with what stands between it and the column before.
        tokens: read the texts of these items only, without a word on those that are empty or not there; None: of all.

    Returns:
        Token -> text, in file order. A text is the non-empty values of `fields`, joined by ". " or as in the template,
        with HTML entities decoded and each run of white space made one blank. A warning counts empty texts.

    Raises:
        InputError: if the file or a field is missing, an item occurs twice, or a line cannot be read.
    """
    rows = _read_rows(item_file)
    _, header = next(rows, (1, []))
    names = [column.partition(":")[0] for column in header]
    if isinstance(fields, str) or not fields:
        raise InputError(f"text_fields must be a non-empty list of columns of {item_file}, not {fields!r}")
    pieces = _pieces(fields)
    missing = [field for field in (item_file.item_field, *(field for _, field in pieces)) if field not in names]
    if missing:
        raise InputError(
            f"{item_file}: no column {missing[0]!r}{nearest(missing[0], names)}; it has {', '.join(names) or 'none'}; "
            "name existing columns in text_fields, or add the column"
        )
    token_column = names.index(item_file.item_field)
    text_places = [(before, names.index(field)) for before, field in pieces]

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
        texts[token] = _joined([(before, _clean(row[at]) if at < len(row) else "") for before, at in text_places])
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


def items_without_line(item_file: ItemFile, texts: Mapping[str, str], tokens: Sequence[str]) -> list[str]:
    """The items that the `.item` file says nothing of; they count as items with an empty text, and a warning says so.

    Args:
        item_file: the file, for messages.
        texts: of all its items.
        tokens: of the items of the dataset, without padding.

    Raises:
        InputError: if that are more than half of them: the two files then hardly belong together.
    """
    absent = [token for token in tokens if token not in texts]
    if not absent:
        return []
    found = f"{item_file}: {len(absent)} of {len(tokens)} items ({', '.join(map(repr, absent[:3]))}) have no line"
    if len(absent) > _MOST_WITHOUT_LINE * len(tokens):
        raise InputError(
            f"{found}; the file's own items are such as {', '.join(map(repr, list(texts)[:3]))}: write both files with "
            f"the same ids, or add the lines. {_WITHOUT_TEXTS}"
        )
    log.warning("%s: they count as items without text", found)
    return absent


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


def _read_rows(item_file: ItemFile) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, columns) of each line that is not blank, the header first."""
    if not item_file.path.is_file():
        raise InputError(
            f"item file {item_file} does not exist; texts are read from a RecBole `.item` file. {_WITHOUT_TEXTS}"
        )
    if len(item_file.separator) != 1:
        raise InputError(
            f"field_separator: {item_file.separator!r} has {len(item_file.separator)} characters; texts are read from "
            f"files with one character between columns: write {item_file} with tabs"
        )
    with item_file.path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=item_file.separator)  # as pandas' python engine, which is strict besides
        remedy = "remove the quote (RecBole stumbles over it, too)"
        try:
            for first, row in rows_with_lines(item_file.path, reader, item_file.separator, remedy):
                if row:
                    yield first, row
        except csv.Error as error:
            raise InputError(f"{item_file}, line {reader.line_num}: {error}; shorten or repair it") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{item_file}, after line {reader.line_num}: not UTF-8: {error}; convert it") from error


def _clean(value: str) -> str:
    return " ".join(html.unescape(value).split())
