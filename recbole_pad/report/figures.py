"""The figures, as plain dicts that plotly.js draws. Colours of text and lines are set by the page, light or dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_pad.report.runs import Model, Run, Stat

# Okabe and Ito's set, told apart by colour-blind readers; without black and yellow, which one of the two themes hides.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c7a6b")
_DASHES = ("solid", "dash", "dot", "dashdot")
_PATTERNS = ("", "/", ".", "x")
# From rare to frequent, seen on light and dark paper and told apart by colour-blind readers.
SCALE = ("#2a6fb5", "#6f93b8", "#a8a79f", "#cf9f4a", "#e07b00")
METRICS = {"hit@10": "HR@10", "ndcg@10": "NDCG@10"}
SPACE_NAMES = {
    "id": "ID",
    "text": "text, frozen",
    "text_adapted": "text, adapted",
    "aligned": "aligned",
    "llm": "LLM expert",
}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        title: above it; not escaped yet.
        spec: ``data`` and ``layout`` of plotly.
        alt: what it shows, for readers that do not see it.
    """

    title: str
    spec: dict[str, Any]
    alt: str


def learning_curves(models: Sequence[Model], phase: str, metric: str) -> list[Figure]:
    """Loss and validation metric of one phase by epoch, a line for each run; nothing for what no run has."""
    losses: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for place, model in enumerate(models):
        for run in model.runs:
            entry = run.report["phases"].get(phase, {})
            name = f"{model.label}, seed {run.seed}" if len(model.runs) > 1 else model.label
            loss = entry.get("train_loss") or []
            curve = [(epoch, score) for epoch, score in entry.get("valid_curve") or [] if score is not None]
            if loss:
                losses.append(_line(name, range(1, len(loss) + 1), loss, place))
            if curve:
                epochs = [int(epoch) + 1 for epoch, _ in curve]
                line = _line(name, epochs, [100 * score for _, score in curve], place)
                best = entry.get("best_epoch")
                sizes = [9 if epoch - 1 == best or len(epochs) == 1 else 3 for epoch in epochs]
                scores.append({**line, "mode": "lines+markers", "marker": {"color": _colour(place), "size": sizes}})
    figures = []
    if losses:
        figures.append(_figure(f"{phase}: training loss", losses, "epoch", "loss", "Training loss by epoch"))
    if scores:
        shown = f"{metric}, %"
        figures.append(_figure(f"{phase}: validation {metric}", scores, "epoch", shown, f"{metric} by epoch"))
    return figures


def groups(models: Sequence[Model], kind: str, protocol: str, axis: str) -> list[Figure]:
    """HR@10 and NDCG@10 by group of targets, each model's last phase: bars with the deviation over seeds.

    Args:
        models: of the page.
        kind: ``frequency`` or ``bins``.
        protocol: ``masked`` or ``unmasked``.
        axis: name of the groups.
    """
    last = {model.label: model.last_phase_with("test", protocol, kind) for model in models}
    sizes = _group_sizes(models, last, protocol, kind)
    if not sizes:
        return []
    ticks = [_tick(name, n, len(sizes)) for name, n in sizes.items()]
    figures = []
    for metric, title in METRICS.items():
        bars = []
        for place, model in enumerate(models):
            phase = last[model.label]
            if phase is None:
                continue
            stats = [model.stat("phases", phase, "test", protocol, kind, name, metric) for name in sizes]
            bars.append(_bars(model.label, ticks, stats, place, 100.0, len(models)))
        figure = _figure(title, bars, axis, f"{title}, %", f"{title} by {axis}")
        figure.spec["layout"].update(barmode="group", bargap=0.25)
        figure.spec["layout"]["xaxis"].update(type="category", tickangle=0)
        figures.append(figure)
    return figures


def gate(model: Model, phase: str) -> list[Figure]:
    """Weights of the experts by frequency bin, and their shares where the run has them."""
    where = ("phases", phase, "diagnostics", "gate")
    experts = model.values(*where, "experts")[0]
    figures = []
    for kind, title, axis in (("bins", "Weight", "mean weight"), ("shares", "Share", "mean share, %")):
        bins = model.names(*where, kind)
        if not bins:
            continue
        scale = 100.0 if kind == "shares" else 1.0
        lines = []
        for place, expert in enumerate(experts):
            stats = [Stat.of([row[place] for row in model.values(*where, kind, name)]) for name in bins]
            line = _line(expert, bins, [None if stat is None else scale * stat.mean for stat in stats], place)
            lines.append({**line, "mode": "lines+markers", **_error(stats, scale)})
        figure = _figure(f"{title} of each expert", lines, "frequency bin, 1 = most frequent", axis, f"{title} by bin")
        figure.spec["layout"]["xaxis"].update(type="category")
        figure.spec["layout"]["yaxis"].update(rangemode="tozero")
        figures.append(figure)
    return figures


def mmd(model: Model, phase: str) -> Figure:
    """MMD before and after, in each kernel."""
    where = ("phases", phase, "diagnostics", "mmd")
    kernels = list(dict.fromkeys([*model.names(*where, "before"), *model.names(*where, "after")]))
    bars = [
        _bars(when, kernels, [model.stat(*where, when, kernel) for kernel in kernels], place, 1.0, 2)
        for place, when in enumerate(("before", "after"))
    ]
    figure = _figure("MMD in each kernel", bars, "kernel", "MMD", "MMD before and after, by kernel")
    figure.spec["layout"].update(barmode="group", bargap=0.3)
    figure.spec["layout"]["xaxis"].update(type="category")
    return figure


def spectrum(model: Model, phase: str) -> Figure:
    """Shares of the variance along the principal axes of each space, mean over runs."""
    where = ("phases", phase, "diagnostics", "spaces")
    lines = []
    for place, name in enumerate(SPACE_NAMES):
        found = [shares for shares in model.values(*where, name, "spectrum") if shares]
        if found:
            n = min(len(shares) for shares in found)
            mean = np.mean([shares[:n] for shares in found], axis=0)
            positive = [float(share) if share > 0 else None for share in mean]  # the axis is logarithmic
            lines.append(_line(SPACE_NAMES[name], range(1, n + 1), positive, place))
    figure = _figure("Spectrum", lines, "principal axis", "share of the variance", "Spectrum of the item spaces")
    figure.spec["layout"]["yaxis"].update(type="log", dtick=1, tickformat="~g")
    return figure


def planes(run: Run, names: Sequence[str]) -> list[Figure]:
    """The items in the plane of two principal components of each space, coloured by log10 of the train frequency."""
    counts = run.spaces["count"]
    order = np.argsort(counts, kind="stable")  # frequent items are drawn last, on top
    colours = np.log10(np.maximum(counts[order], 1))
    figures = []
    for name in names:
        points = run.spaces[name][order]
        trace = {
            "type": "scatter",
            "mode": "markers",
            "x": _numbers(points[:, 0], 3),
            "y": _numbers(points[:, 1], 3),
            "text": [f"{int(count):,}" for count in counts[order]],
            "hovertemplate": "train frequency %{text}<extra></extra>",
            "marker": {
                "size": 4,
                "opacity": 0.75,
                "color": _numbers(colours, 3),
                "colorscale": [[place / (len(SCALE) - 1), colour] for place, colour in enumerate(SCALE)],
                "cmin": 0,
                "cmax": top_power(run),
            },
        }
        title = f"Space: {SPACE_NAMES[name]}"
        figure = _figure(title, [trace], "", "", f"{title} in two dimensions")
        bare = {"showticklabels": False, "zeroline": False, "showgrid": False, "ticks": "", "showline": False}
        figure.spec["layout"].update(margin={"l": 4, "r": 4, "t": 4, "b": 4})
        figure.spec["layout"]["xaxis"].update(bare)
        figure.spec["layout"]["yaxis"].update(bare, scaleanchor="x")
        figures.append(figure)
    return figures


def top_power(run: Run) -> int:
    """The power of ten at the upper end of the colours of `planes`."""
    return max(1, int(np.ceil(np.log10(max(1, run.spaces["count"].max(initial=1))))))


def legend_of(figures: Sequence[Figure]) -> list[tuple[str, str, str]]:
    """Name, colour and dash or pattern of what the figures show, in order, for a legend outside them."""
    found: dict[str, tuple[str, str, str]] = {}
    for figure in figures:
        for trace in figure.spec["data"]:
            name = html.unescape(trace["meta"]["group"])
            found.setdefault(name, (name, trace["meta"]["colour"], trace["meta"]["style"]))
    return list(found.values())


def _group_sizes(models: Sequence[Model], last: dict[str, str | None], protocol: str, kind: str) -> dict[str, int]:
    """The groups that have targets in some run, and how many."""
    sizes: dict[str, int] = {}
    for model in models:
        phase = last[model.label]
        if phase is None:
            continue
        for table in model.values("phases", phase, "test", protocol, kind):
            for name, entry in table.items():
                sizes[name] = max(sizes.get(name, 0), int(entry["n"]))
    return {name: n for name, n in sizes.items() if n}


def _tick(name: str, n: int, n_groups: int) -> str:
    """A group and, small below it, its number of targets; many groups leave little room on a phone."""
    size, count = (10, f"{n:,}") if n_groups < 9 else (9, f"{n}")
    return f'{html.escape(name)}<br><span style="font-size:{size}px">{count}</span>'


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _cycled(styles: Sequence[str], place: int) -> str:
    """A second mark beside the colour, once the colours are used up."""
    return styles[place // len(COLOURS) % len(styles)]


def _line(name: str, x: Sequence[Any], y: Sequence[float | None], place: int) -> dict[str, Any]:
    group = name.rsplit(", seed ", 1)[0]
    dash = _cycled(_DASHES, place)
    return {
        "type": "scatter",
        "mode": "lines" if len(y) > 1 else "markers",
        "name": html.escape(name),
        "x": list(x),
        "y": _numbers(y, 6),
        "line": {"color": _colour(place), "width": 2, "dash": dash},
        "marker": {"color": _colour(place), "size": 5},
        "meta": {"group": html.escape(group), "colour": _colour(place), "style": dash},
        "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _bars(
    name: str, x: Sequence[str], stats: Sequence[Stat | None], place: int, scale: float, n_series: int
) -> dict[str, Any]:
    pattern = _cycled(_PATTERNS, place)
    values = [None if stat is None else scale * stat.mean for stat in stats]
    return {
        "type": "bar",
        "name": html.escape(name),
        "x": list(x),
        "y": _numbers(values, 6),
        **_error(stats, scale),
        "marker": {"color": _colour(place), **({"pattern": {"shape": pattern}} if pattern else {})},
        "meta": {"group": html.escape(name), "colour": _colour(place), "style": pattern or "solid"},
        "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>" if n_series > 1 else "%{y:.4g}<extra></extra>",
    }


def _error(stats: Sequence[Stat | None], scale: float) -> dict[str, Any]:
    deviations = [None if stat is None or stat.deviation is None else scale * stat.deviation for stat in stats]
    if not any(deviations):
        return {}
    return {"error_y": {"type": "data", "array": _numbers(deviations, 6), "thickness": 1.2, "width": 2}}


def _figure(title: str, data: list[dict[str, Any]], x: str, y: str, alt: str) -> Figure:
    layout = {
        "height": 290,
        "margin": {"l": 52, "r": 8, "t": 8, "b": 48},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": {
            "title": {"text": html.escape(x)},
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {"title": {"text": html.escape(y)}, "automargin": True, "zeroline": False, "fixedrange": True},
    }
    return Figure(title, {"data": data, "layout": layout}, alt)


def _numbers(values: Sequence[float | None] | Any, digits: int) -> list[float | None]:
    """Rounded to significant digits: shorter, and no difference that a figure could show."""
    rounded: Callable[[float], float] = lambda value: float(f"{value:.{digits}g}")  # noqa: E731
    return [None if value is None or not np.isfinite(value) else rounded(float(value)) for value in values]
