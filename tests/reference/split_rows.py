"""The rows of a built split as plain lists, to compare with those of the loops."""

from __future__ import annotations

from typing import Any

from tests.reference.rows_loops import Row


def rows_of(dataset: Any) -> dict[str, list[Row]]:
    """The rows of each user of a split, in order."""
    rows: dict[str, list[Row]] = {}
    feat = dataset.inter_feat
    for row, user in enumerate(feat["user_id"].tolist()):
        n = int(feat["item_length"][row])
        items = [*feat["item_id_list"][row][:n].tolist(), int(feat["item_id"][row])]
        times = [*feat["timestamp_list"][row][:n].tolist(), float(feat["timestamp"][row])]
        entries = list(zip(dataset.id2token("item_id", items).tolist(), times, strict=True))
        rows.setdefault(str(dataset.id2token("user_id", user)), []).append((entries[:-1], entries[-1]))
    return rows
