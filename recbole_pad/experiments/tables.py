"""Rows of a comparison as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from recbole_pad.data.frequency import COLD, OVER_20, WARM
from recbole_pad.experiments.measures import PROTOCOLS, Measure, Row
from recbole_pad.experiments.paired_tests import PairedTest

COLUMNS: dict[str, Measure] = {
    "HR@10": Measure("masked", "all", "hit@10"),
    "NDCG@10": Measure("masked", "all", "ndcg@10"),
    f"{COLD} HR@10": Measure("masked", COLD, "hit@10"),
    f"{COLD} NDCG@10": Measure("masked", COLD, "ndcg@10"),
    f"{OVER_20} HR@10": Measure("masked", OVER_20, "hit@10"),
    f"{OVER_20} NDCG@10": Measure("masked", OVER_20, "ndcg@10"),
    f"{WARM} HR@10": Measure("masked", WARM, "hit@10"),
    f"{WARM} NDCG@10": Measure("masked", WARM, "ndcg@10"),
    "HR@10, not masked": Measure("unmasked", "all", "hit@10"),
    "NDCG@10, not masked": Measure("unmasked", "all", "ndcg@10"),
}


def markdown_table(rows: Sequence[Row], extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """Means and standard deviations over seeds in %, the best of each column bold.

    Args:
        rows: rows of one dataset.
        extra: further columns: heading -> a cell for each row.
    """
    further = extra or {}
    heads = ["model", "seeds", *COLUMNS, *further, "epochs", "seconds"]
    body = [
        [
            row.name,
            str(len(row.results)),
            *cells,
            *(column[number] for column in further.values()),
            f"{np.mean(row.epochs):.0f}",
            f"{np.mean(row.seconds):.0f}",
        ]
        for number, (row, cells) in enumerate(zip(rows, _cells(rows, "**{}**", " ± "), strict=True))
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *body]])


def groups_table(rows: Sequence[Row], kind: str) -> str:
    """HR@10 by group of targets in %, ``masked / not masked``, means over seeds; groups without targets left out.

    Args:
        rows: rows of one dataset.
        kind: ``frequency`` or ``bin``.
    """
    named = [measure.group for row in rows for measure in row.values if measure.group.startswith(f"{kind} ")]
    groups = list(dict.fromkeys(named))
    lines = [["model", *(group.removeprefix(f"{kind} ") for group in groups)], ["---"] * (len(groups) + 1)]
    for row in rows:
        pairs = [[row.mean(Measure(protocol, group, "hit@10")) for protocol in PROTOCOLS] for group in groups]
        cells = [" / ".join("-" if mean is None else f"{100 * mean:.2f}" for mean in pair) for pair in pairs]
        lines.append([row.name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex_table(rows: Sequence[Row], caption: str) -> str:
    """The same table for LaTeX with booktabs; text is escaped."""
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}",
        rf"\begin{{tabular}}{{lr{'r' * len(COLUMNS)}}}", r"\toprule",
        " & ".join(["model", "seeds", *map(_latex, COLUMNS)]) + r" \\", r"\midrule",
    ]  # fmt: skip
    for row, cells in zip(rows, _cells(rows, r"\textbf{{{}}}", r" $\pm$ "), strict=True):
        lines.append(" & ".join([_latex(row.name), str(len(row.results)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _cells(rows: Sequence[Row], bold: str, sign: str) -> list[list[str]]:
    best = {
        measure: max((mean for row in rows if (mean := row.mean(measure)) is not None), default=None)
        for measure in COLUMNS.values()
    }
    cells = []
    for row in rows:
        line = []
        for measure in COLUMNS.values():
            mean, deviation = row.mean(measure), row.deviation(measure)
            text = "" if mean is None else f"{100 * mean:.2f}"
            if mean is not None and mean == best[measure]:
                text = bold.format(text)
            line.append(text if deviation is None else f"{text}{sign}{100 * deviation:.2f}")
        cells.append(line)
    return cells


def paired_tests_table(tests: Sequence[PairedTest]) -> str:
    """Paired tests as a Markdown table; differences in points of %."""
    lines = [
        "| dataset | measure | compared | difference [95 %] | p (users) | p (seeds) | p corrected (users / seeds) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for test in tests:
        what = f"{_metric_name(test.measure.metric)}, {test.measure.group}, {_protocol(test.measure.protocol)}"
        interval = f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"
        corrected = f"{_p(test.p_users_corrected)} / {_p(test.p_seeds_corrected)}"
        lines.append(
            f"| {test.dataset} | {what} | {test.first} - {test.second} | {interval} | {_p(test.p_users)} | "
            f"{_p(test.p_seeds)} | {corrected} |"
        )
    return "\n".join(lines)


def _metric_name(metric: str) -> str:
    return metric.replace("hit", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR")


def _protocol(word: str) -> str:
    return {"masked": "history masked", "unmasked": "not masked"}[word]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"


def csv_text(rows: Sequence[Row]) -> str:
    """Everything in long form: one line for each dataset, model, phase, seed and measure; metrics in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "model", "phase", "seed", "protocol", "group", "metric", "value"])
    for row in rows:
        for measure, values in row.values.items():
            for seed, value in zip(row.results, values, strict=True):
                writer.writerow([row.dataset, row.label, row.phase, seed, *measure, repr(value)])
    return out.getvalue()


def as_json(rows: Sequence[Row], tests: Sequence[PairedTest]) -> dict[str, Any]:
    """Means, deviations and values of all rows, and the tests, as plain values."""
    return {
        "rows": [
            {
                "dataset": row.dataset,
                "model": row.label,
                "phase": row.phase,
                "is_last": row.is_last,
                "seeds": list(row.results),
                "seconds": row.seconds,
                "measures": [
                    {**measure._asdict(), "mean": row.mean(measure), "sd": row.deviation(measure), "values": values}
                    for measure, values in row.values.items()
                ],
            }
            for row in rows
        ],
        "tests": [{**asdict(test), "measure": test.measure._asdict()} for test in tests],
    }


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ">": r"$>$", "<": r"$<$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
