"""Results as a text table: one line per model and phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COLD = ("0", "1-5")


def result_table(reports: Sequence[dict[str, Any]], split: str = "test") -> str:
    """Markdown table of Hit@10 and NDCG@10 in %, history masked and not, and of cold and warm targets.

    Args:
        reports: contents of result.json, of runs on one dataset.
        split: ``test`` or ``valid``.
    """
    lines = [
        f"{reports[0]['dataset']}, {split}, full ranking, leave-one-out; Hit@10 / NDCG@10 in %",
        "",
        "| model | phase | masked | not masked | cold (train frequency 0-5), masked | over 100, masked | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        name = report["model"] if report["backbone"] is None else f"{report['model']} ({report['backbone']})"
        for phase, entry in report["phases"].items():
            if split not in entry:
                lines.append(f"| {name} | {phase} | {report['test_result']} | | | | {entry['seconds']:.0f} |")
                continue
            masked, unmasked = entry[split]["masked"], entry[split]["unmasked"]
            cells = [
                _cell(masked["all"]),
                _cell(unmasked["all"]),
                _cell(_merged([masked["frequency"][group] for group in _COLD])),
                _cell(masked["frequency"][">100"]),
            ]
            lines.append(f"| {name} | {phase} | {' | '.join(cells)} | {entry['seconds']:.0f} |")
    return "\n".join(lines)


def _cell(metrics: dict[str, Any]) -> str:
    if not metrics["n"]:
        return "no targets"
    return f"{100 * metrics['hit@10']:.2f} / {100 * metrics['ndcg@10']:.2f}"


def _merged(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the rows of several groups."""
    n = sum(group["n"] for group in groups)
    filled = [group for group in groups if group["n"]]
    keys = ("hit@10", "ndcg@10") if filled else ()
    return {"n": n, **{key: sum(group["n"] * group[key] for group in filled) / n for key in keys}}
