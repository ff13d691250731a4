"""The split at two global times in plain loops over the histories of a file."""

from __future__ import annotations

from tests.reference.rows_loops import Interaction, Row


def cuts(histories: dict[str, list[Interaction]], shares: list[float]) -> list[float]:
    """The first time of validation and of test: so many interactions are before it, or fewer where times are tied."""
    times = sorted(time for history in histories.values() for _, time in history)
    ends = [shares[0] / sum(shares), (shares[0] + shares[1]) / sum(shares)]
    return [times[round(end * len(times))] for end in ends]


def split(histories: dict[str, list[Interaction]], at: list[float]) -> list[dict[str, list[Row]]]:
    """The rows of each user in train, validation and test: where the target's time lies, with all that is earlier."""
    splits: list[dict[str, list[Row]]] = [{}, {}, {}]
    for user, history in histories.items():
        for place in range(1, len(history)):
            time = history[place][1]
            part = 0 if time < at[0] else 1 if time < at[1] else 2
            splits[part].setdefault(user, []).append((history[:place], history[place]))
    return splits
