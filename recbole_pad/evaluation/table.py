"""Results as a text table: one line per model and phase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_pad.data.frequency import COLD, COLD_TEXT, TARGET_GROUPS, WARM
from recbole_pad.errors import InputError
from recbole_pad.evaluation.metrics import merged


def read_reports(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The contents of result.json of run folders (or of the files themselves), in this order.

    Raises:
        InputError: for a run without a result, a file that is none, or runs on different datasets.
    """
    reports = []
    for run in runs:
        path = run / "result.json" if run.is_dir() else run
        if not path.is_file():
            raise InputError(
                f"{path}: no such result; a run writes it at its end (continue a killed one with --resume)"
            )
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            report["phases"], report["dataset"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is not a result.json of ours ({type(error).__name__}: {error})") from error
        reports.append(report)
    datasets = sorted({report["dataset"] for report in reports})
    if len(datasets) > 1:
        raise InputError(
            f"runs on different datasets cannot share a table or page: {', '.join(datasets)}; name runs on one of them"
        )
    return reports


def split_text(protocol: Mapping[str, Any]) -> str:
    """How held-out targets were chosen, of the `protocol` of a result.json."""
    cold = f", {protocol['cold_split']:g} of the items withheld" if protocol.get("cold_split") else ""
    return ("leave-one-out" if "LS" in protocol["split"] else f"split {protocol['split']}") + cold


def _ranking_text(protocol: Mapping[str, Any], split: str) -> str:
    mode = protocol["ranking"][split]
    return "full ranking" if mode == "full" else f"ranking among {mode}"


def result_table(reports: Sequence[dict[str, Any]], split: str = "test") -> str:
    """Markdown table of Hit@10 and NDCG@10 in %, history masked and not, and of cold and warm targets.

    Args:
        reports: contents of result.json, of runs on one dataset.
        split: ``test`` or ``valid``.

    Raises:
        InputError: for runs under different protocols.
    """
    protocols = [f"{_ranking_text(of, split)}, {split_text(of)}" for of in (report["protocol"] for report in reports)]
    if len(set(protocols)) > 1:
        raise InputError(f"runs under different protocols cannot share a table: {'; '.join(sorted(set(protocols)))}")
    lines = [
        f"{reports[0]['dataset']}, {split}, {protocols[0]}; Hit@10 / NDCG@10 in %",
        "",
        f"| model | phase | masked | not masked | {COLD} ({COLD_TEXT}), masked | {WARM}, masked | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        name = report["model"] if report["backbone"] is None else f"{report['model']} ({report['backbone']})"
        for phase, entry in report["phases"].items():
            if split not in entry:
                only = _recboles_result(report, phase, split)
                lines.append(f"| {name} | {phase} | {only} | | | | {entry['seconds']:.0f} |")
                continue
            masked, unmasked = entry[split]["masked"], entry[split]["unmasked"]
            groups = [merged([masked["frequency"][own] for own in TARGET_GROUPS[group]]) for group in (COLD, WARM)]
            cells = map(_cell, [masked["all"], unmasked["all"], *groups])
            lines.append(f"| {name} | {phase} | {' | '.join(cells)} | {entry['seconds']:.0f} |")
    return "\n".join(lines)


def _recboles_result(report: Mapping[str, Any], phase: str, split: str) -> str:
    """Of a run that is not reported by groups: RecBole's own results, on test data that of the last phase only."""
    is_last = phase == list(report["phases"])[-1]
    found = report["phases"][phase].get("best_valid_result") if split == "valid" else is_last and report["test_result"]
    names = {"hit@10": "Hit@10", "ndcg@10": "NDCG@10"}
    return ", ".join(f"{name} {100 * found[key]:.2f}" for key, name in names.items() if found and key in found) or "-"


def _cell(metrics: dict[str, Any]) -> str:
    if not metrics["n"]:
        return "no targets"
    return f"{100 * metrics['hit@10']:.2f} / {100 * metrics['ndcg@10']:.2f}"
