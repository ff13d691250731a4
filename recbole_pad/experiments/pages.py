"""The pages of comparisons and experiments, in Markdown: what the numbers are, tables, tests, and words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_pad.data.frequency import COLD, COLD_TEXT, WARM
from recbole_pad.evaluation.table import split_text
from recbole_pad.experiments.definition import Experiment
from recbole_pad.experiments.measures import Measure, Row
from recbole_pad.experiments.paired_tests import PairedTest
from recbole_pad.experiments.tables import groups_table, markdown_table, paired_tests_table

_LEVEL = 0.05


@dataclass(frozen=True)
class Choice:
    """What validation data chose for a variant.

    Attributes:
        label: the variant.
        key: the setting.
        scores: each value (as JSON), and its validation NDCG@10, mean over the tuning seeds.
        chosen: the value of the highest score.
    """

    label: str
    key: str
    scores: dict[str, float]
    chosen: Any


def comparison_page(
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    failures: Mapping[str, str],
    command: str,
) -> str:
    """The page of a comparison: for each dataset a table, groups and bins; then tests, and what is missing."""
    parts = ["# Comparison", protocol_text(rows), f"```bash\n{command}\n```" if command else ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        last = [row for row in own if row.is_last]
        parts += [f"## {dataset}", markdown_table(own)]
        parts += [
            "HR@10 by train frequency of the target, history masked / not masked:",
            groups_table(last, "frequency"),
        ]
        parts += ["The same by bin (1: most frequent items, all bins of equal train mass):", groups_table(last, "bin")]
    return _with_end(parts, _BEST_OTHER_TEXT, tests, failures)


def _with_end(parts: Sequence[str], text: str, tests: Sequence[PairedTest], failures: Mapping[str, str]) -> str:
    """The parts of a page, its tests, and what has no result."""
    end = ["## Tests", text, paired_tests_table(tests)] if tests else []
    if failures:
        end += ["## Missing", "\n".join(f"- {cell}: {why}" for cell, why in failures.items())]
    return "\n\n".join(part for part in [*parts, *end] if part) + "\n"


_BEST_OTHER_TEXT = (
    "The first model against the best other one on each measure (NDCG@10). Users: paired bootstrap over test rows, "
    "10,000 resamples, each row's value being the mean over seeds; it says nothing of the noise between seeds. Seeds: "
    "paired t-test over common seeds. Corrected: Holm, over all tests of this table. The best other model is chosen by "
    "its test result, which makes the test harder, not easier, for the first."
)


def protocol_text(rows: Sequence[Row]) -> str:
    """What the numbers are: protocol, seeds, machines and versions of the runs."""
    reports = [result.report for row in rows for result in row.results.values()]
    protocol = reports[0]["protocol"]
    seeds = ", ".join(map(str, sorted({seed for row in rows for seed in row.results})))
    return (
        f"Test split, {split_text(protocol)}, full ranking over all items, HR@10 / NDCG@10 in %, mean ± standard "
        f"deviation over seeds ({seeds}; models with nothing to train: one run). Masked: the user's whole history "
        "cannot be "
        f"recommended; every run is ranked both ways. Early stopping on {_valid_metrics(rows)}, history "
        f"{'' if protocol['mask_history'] else 'not '}masked. Cold: targets with {COLD_TEXT}; over 100: above "
        "100. Bold: best of the column. Epochs: of this phase. Seconds: training and validation, without the test; of "
        "phases that runs share, what they took once; where a variant starts from another one, its own only.\n\n"
        f"Machine: {'; '.join(sorted({_machine(report) for report in reports}))}."
    )


def _valid_metrics(rows: Sequence[Row]) -> str:
    """The metric of early stopping; where variants have others, the first one's, and then who has which."""
    labels: dict[str, dict[str, None]] = {}
    for row in rows:
        for result in row.results.values():
            labels.setdefault(result.report["protocol"]["valid_metric"], {})[row.label] = None
    first, *others = labels
    told = "; ".join(f"{', '.join(labels[metric])}: {metric}" for metric in others)
    return f"{first} ({told})" if told else first


def _machine(report: Mapping[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("recbole-pad", "torch", "recbole", "python"))
    return f"{machine['platform']}, {machine['cpus']} cores, {machine['device']}; {packages}"


def experiment_page(
    experiment: Experiment,
    dataset: str,
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    choices: Sequence[Choice],
    failures: Mapping[str, str],
    extra: Mapping[str, Sequence[str]],
    command: str,
    stem: str,
) -> str:
    """The page of an experiment: its question, the answer in words, figure, table, settings, tests, what is missing.

    Args:
        experiment: what was asked.
        dataset: its name.
        rows: of the table.
        tests: every row against the reference's.
        choices: what validation data chose.
        failures: cell -> why it has no result.
        extra: heading -> a cell for each row.
        command: for the record.
        stem: name of the figure without suffix.
    """
    parts = [
        f"# {experiment.title} ({dataset})",
        experiment.question,
        in_words(experiment, rows, tests),
        f"![{experiment.title}]({stem}.svg)",
        markdown_table(rows, extra),
        f"```bash\n{command}\n```" if command else "",
        protocol_text(rows),
        "## Variants",
        _settings_table(experiment, choices),
    ]
    if choices:
        parts += ["## Chosen on validation data", _choices_table(choices)]
    return _with_end(parts, _REFERENCE_TEXT.format(experiment.reference), tests, failures)


_REFERENCE_TEXT = (
    "Every variant less the reference `{}`, in points of NDCG@10. Users: paired bootstrap over test rows, 10,000 "
    "resamples, each row's value being the mean over seeds; it says nothing of the noise between seeds. Seeds: paired "
    "t-test. Corrected: Holm, over all tests of a phase (of the table, where it does not show phases apart)."
)


def grouped(experiment: Experiment, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows that are compared with each other: of each phase that the experiment shows, else all of them.

    A model that has none of these phases stands with those of the last one.
    """
    phases = [phase for phase in experiment.show if any(row.phase == phase for row in rows)]
    return {
        phase: [row for row in rows if row.phase == phase or (phase == phases[-1] and row.phase not in phases)]
        for phase in phases
    } or {"": list(rows)}


def in_words(experiment: Experiment, rows: Sequence[Row], tests: Sequence[PairedTest]) -> str:
    """A paragraph: the reference, the best, and which variants differ from the reference beyond chance."""
    sentences = []
    for phase, own in grouped(experiment, rows).items():
        reference = next((row for row in own if row.label == experiment.reference), None)
        best = max(own, key=lambda row: row.mean(_NDCG) or 0.0)
        where = f"After phase `{phase}`" if phase else "In the table below"
        if reference is not None:
            sentences.append(f"{where}, the reference `{reference.label}` has {_figures(reference)}.")
        if best is not reference:
            sentences.append(f"The highest NDCG@10 has `{best.label}`: {_figures(best)}.")
        named = {row.name for row in own}
        found = [test for test in tests if test.first in named and test.p_users_corrected <= _LEVEL]
        for group in ("all", COLD, WARM):
            labels = {
                sign: [f"`{test.first}` ({100 * test.difference:+.2f})" for test in found
                       if test.measure.group == group and test.difference * sign > 0]
                for sign in (1, -1)
            }  # fmt: skip
            said = [
                f"{word} {', '.join(labels[sign])}" for sign, word in ((1, "better:"), (-1, "worse:")) if labels[sign]
            ]
            target = {"all": "all targets", COLD: f"{COLD} targets", WARM: f"targets {WARM}"}[group]
            sentences.append(
                f"Against it on {target} (NDCG@10 in points; users, 5 %, corrected): "
                f"{'; '.join(said) if said else 'no difference shown'}."
            )
    return " ".join(sentences)


_NDCG = Measure("masked", "all", "ndcg@10")


def _figures(row: Row) -> str:
    def mean(group: str, metric: str) -> str:
        value, spread = (part(Measure("masked", group, metric)) for part in (row.mean, row.deviation))
        text = "-" if value is None else f"{100 * value:.2f}"
        return text if spread is None else f"{text} ± {100 * spread:.2f}"

    return (
        f"HR@10 {mean('all', 'hit@10')} and NDCG@10 {mean('all', 'ndcg@10')} % "
        f"({COLD} {mean(COLD, 'hit@10')} / {mean(COLD, 'ndcg@10')}, {WARM} {mean(WARM, 'hit@10')} / "
        f"{mean(WARM, 'ndcg@10')})"
    )


def _settings_table(experiment: Experiment, choices: Sequence[Choice]) -> str:
    chosen = {choice.label: {choice.key: choice.chosen} for choice in choices}
    lines = ["| variant | settings | starts from |", "| --- | --- | --- |"]
    for label, variant in experiment.variants.items():
        settings = {**variant.settings, **chosen.get(label, {})}
        told = ", ".join(f"{key}: {json.dumps(value)}" for key, value in settings.items()) or "defaults"
        model = "" if variant.model == "PAD" else f"{variant.model}; "
        start = f"{', '.join(variant.start_experts)} of `{variant.start}`" if variant.start else ""
        lines.append(f"| {label}{' (not shown)' if label in experiment.hidden else ''} | {model}{told} | {start} |")
    shared = ", ".join(f"{key}: {json.dumps(value)}" for key, value in experiment.settings.items())
    return "\n".join(lines) + (f"\n\nAll variants: {shared}." if shared else "")


def _choices_table(choices: Sequence[Choice]) -> str:
    lines = ["| variant | key | validation NDCG@10 in % by value | chosen |", "| --- | --- | --- | --- |"]
    for choice in choices:
        scores = ", ".join(f"{value}: {100 * score:.2f}" for value, score in choice.scores.items())
        lines.append(f"| {choice.label} | {choice.key} | {scores} | {json.dumps(choice.chosen)} |")
    return "\n".join(lines)
