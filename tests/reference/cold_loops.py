"""The cold-item protocol in plain loops over the histories of a file."""

from __future__ import annotations

from tests.reference.rows_loops import Interaction, Row


def without_withheld(histories: dict[str, list[Interaction]], withheld: set[str]) -> dict[str, list[Interaction]]:
    """Each user's interactions without withheld items; a last one stays if two others are left for training."""
    left = {}
    for user, history in histories.items():
        kept = [entry for entry in history[:-1] if entry[0] not in withheld]
        if history[-1][0] not in withheld or len(kept) >= 2:
            kept.append(history[-1])
        left[user] = kept
    return left


def leave_one_out(histories: dict[str, list[Interaction]]) -> list[dict[str, list[Row]]]:
    """RecBole's rows of each user in train, validation and test: a row for every prefix."""
    splits: list[dict[str, list[Row]]] = [{}, {}, {}]
    for user, history in histories.items():
        rows = [(history[:end], history[end]) for end in range(1, len(history))]
        n_left_out = max(0, min(2, len(rows) - 1))
        parts = [rows[: len(rows) - n_left_out], [], []]
        for number, row in enumerate(rows[len(rows) - n_left_out :]):
            parts[3 - n_left_out + number].append(row)
        for split, part in zip(splits, parts, strict=True):
            if part:
                split[user] = part
    return splits
