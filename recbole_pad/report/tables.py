"""The tables: results, groups, training, spaces, items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recbole_pad.report.figures import METRICS, SPACE_NAMES
from recbole_pad.report.markup import MISSING, Cell, number, percent, table, with_best, word
from recbole_pad.report.runs import Model

PROTOCOLS = {"masked": "history masked", "unmasked": "history not masked"}
RESULTS = {
    f"{metric}@{k}": f"{title}@{k}"
    for metric, title in (("hit", "HR"), ("ndcg", "NDCG"), ("mrr", "MRR"))
    for k in (5, 10, 20)
}
_KEPT = {"overlap": "neighbours kept", "tau_target": "τ to the target", "tau_random": "τ to a random item"}
_OVERLAPS = {"id_text": "ID and text", "aligned_text": "aligned and text", "aligned_id": "aligned and ID"}


def results(models: Sequence[Model], split: str, protocol: str) -> str:
    """Hit, NDCG and MRR of every model and phase in %, the best of each column marked; "" if no run has them."""
    rows = []
    for model, phase in _with_phases(models):
        where = ("phases", phase, split, protocol, "all")
        if model.values(*where):
            shares = [percent(model.stat(*where, metric)) for metric in RESULTS]
            rows.append([word(model.label), word(phase), *shares])
    if not rows:
        return ""
    caption = f"{split}, {PROTOCOLS[protocol]}, in %{_over_seeds(models)}"
    return table(_capital(caption), ["model", "phase", *RESULTS.values()], with_best(rows))


def plain_results(models: Sequence[Model]) -> str:
    """RecBole's own test result of runs that have no ranks by group; "" if every run has them."""
    rest = [model for model in models if not any(model.values("phases", phase, "test") for phase in model.phases)]
    metrics = list(dict.fromkeys(name for model in rest for name in model.names("test_result")))
    if not metrics:
        return ""
    rows = [[word(model.label), *(number(model.stat("test_result", name), 4) for name in metrics)] for model in rest]
    return table(f"Test, as RecBole reports it{_over_seeds(rest)}", ["model", *metrics], with_best(rows))


def group_numbers(models: Sequence[Model], kind: str, protocol: str) -> str:
    """The numbers behind the bars of `figures.groups`."""
    rows = []
    for model in models:
        phase = model.last_phase_with("test", protocol, kind)
        for name in [] if phase is None else model.names("phases", phase, "test", protocol, kind):
            where = ("phases", str(phase), "test", protocol, kind, name)
            n = max(int(n) for n in model.values(*where, "n"))
            shares = [percent(model.stat(*where, metric)) for metric in METRICS]
            rows.append([word(model.label), word(name), number(n, 0), *shares])
    head = "train frequency" if kind == "frequency" else "bin"
    caption = f"By {head} of the target, {PROTOCOLS[protocol]}, in %{_over_seeds(models)}"
    return table(caption, ["model", head, "targets", *METRICS.values()], rows)


def cold_split(models: Sequence[Model], protocol: str) -> str:
    """Targets in the training set and withheld ones, of runs with a cold split; "" without any."""
    rows = []
    for model, phase in _with_phases(models):
        for part, title in (("in_set", "in training"), ("cold", "withheld")):
            where = ("phases", phase, "test", protocol, "cold_split", part)
            if model.values(*where):
                shares = [percent(model.stat(*where, metric)) for metric in METRICS]
                rows.append([word(model.label), word(phase), word(title), _whole(model.values(*where, "n")), *shares])
    if not rows:
        return ""
    caption = f"Items in training and items withheld from it, {PROTOCOLS[protocol]}, in %{_over_seeds(models)}"
    return table(caption, ["model", "phase", "targets", "n", *METRICS.values()], rows)


def training(models: Sequence[Model]) -> str:
    """Epochs, time and memory of every phase."""
    rows = []
    for model, phase in _with_phases(models):
        where = ("phases", phase)
        best = [int(epoch) + 1 for epoch in model.values(*where, "best_epoch") if epoch >= 0]
        reused = any(model.values(*where, "reused_from"))
        rows.append(
            [
                word(model.label),
                word(phase),
                _joined(model.values(*where, "epochs")),
                _joined(best),
                number(model.stat(*where, "seconds"), 0),
                number(model.stat(*where, "peak_memory_mb"), 0),
                _whole(model.values("n_parameters")),
                word("taken from another run" if reused else ""),
            ]
        )
    heads = ["model", "phase", "epochs", "best epoch", "seconds", "peak memory, MB", "parameters", ""]
    return table(f"Training{_over_seeds(models)}", heads, rows)


def spaces(model: Model) -> str:
    """Width, anisotropy and effective rank of every space in every phase; "" without diagnostics."""
    rows = []
    for phase in model.phases:
        for name, title in SPACE_NAMES.items():
            where = ("phases", phase, "diagnostics", "spaces", name)
            if model.values(*where):
                width, rank = _whole(model.values(*where, "width")), number(model.stat(*where, "effective_rank"), 1)
                rows.append([word(phase), word(title), width, number(model.stat(*where, "anisotropy"), 3), rank])
    heads = ["phase", "space", "width", "anisotropy", "effective rank"]
    return table(f"Item spaces of {model.label}{_over_seeds([model])}", heads, rows) if rows else ""


def kept(model: Model) -> str:
    """What is kept of the ID space, and the neighbours that two spaces share; "" without diagnostics."""
    rows = []
    for phase in model.phases:
        where = ("phases", phase, "diagnostics")
        cells = [number(model.stat(*where, "kept", name), 3) for name in _KEPT]
        cells += [number(model.stat(*where, "text_overlap", name), 3) for name in _OVERLAPS]
        if any(cell.value is not None for cell in cells):
            rows.append([word(phase), *cells])
    heads = ["phase", *_KEPT.values(), *_OVERLAPS.values()]
    return table(f"What {model.label} keeps of its ID space{_over_seeds([model])}", heads, rows) if rows else ""


def items(listed: Sequence[dict[str, Any]], caption: str) -> str:
    """Items with titles, as result.json lists them."""
    rows = [
        [
            word(entry.get("title") or entry.get("item", "")),
            number(entry.get("frequency"), 0),
            number(entry.get("n"), 0),
            *(percent(entry.get(metric)) for metric in METRICS),
        ]
        for entry in listed
    ]
    return table(caption, ["item", "in training", "targets", *METRICS.values()], rows) if rows else ""


def versions(models: Sequence[Model]) -> str:
    """Versions of the packages; one row for each set of versions."""
    sets: dict[tuple[tuple[str, str], ...], int] = {}
    for model in models:
        for found in model.values("versions"):
            sets[tuple(found.items())] = sets.get(tuple(found.items()), 0) + 1
    if not sets:
        return ""
    names = list(dict.fromkeys(name for found in sets for name, _ in found))
    rows = [[word(n), *(word(dict(found).get(name, MISSING)) for name in names)] for found, n in sets.items()]
    return table("Versions", ["runs", *names], rows)


def settings(shown: dict[str, Any], caption: str) -> str:
    """Keys and values."""
    rows = [[word(key), word(value)] for key, value in sorted(shown.items())]
    return table(caption, ["key", "value"], rows, sortable=False)


def _with_phases(models: Sequence[Model]) -> list[tuple[Model, str]]:
    return [(model, phase) for model in models for phase in model.phases]


def _over_seeds(models: Sequence[Model]) -> str:
    return "; mean ± standard deviation over seeds" if any(len(model.runs) > 1 for model in models) else ""


def _whole(values: Sequence[Any]) -> Cell:
    """A count that is the same in all runs, else the counts."""
    different = list(dict.fromkeys(values))
    return number(float(different[0]), 0) if len(different) == 1 else _joined(different)


def _joined(values: Sequence[Any]) -> Cell:
    mean = sum(values) / len(values) if values else None
    return Cell(", ".join(str(value) for value in values) or MISSING, mean)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
