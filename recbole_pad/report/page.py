"""The page: its sections, put together and written whole."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_pad.dataset_prep.files import write_text
from recbole_pad.errors import InputError
from recbole_pad.report import figures, tables, words
from recbole_pad.report.assets import SCRIPT, STYLE
from recbole_pad.report.figures import Figure
from recbole_pad.report.markup import details, embed, escape, paragraph, section
from recbole_pad.report.runs import SPACES, Model, Run, group_runs, look_up, read_runs

# The browser itself then refuses every request: all that the page needs is in it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_SPLITS = {"LS": "leave-one-out", "RS": "random split", "TS": "split by time"}
_HELD_OUT = {
    "valid_and_test": "leave-one-out: the last item of each user is for test, the one before for validation",
    "valid_only": "leave-one-out: the last item of each user is for validation",
    "test_only": "leave-one-out: the last item of each user is for test",
}
_OF_THE_MODEL = ("positions", "max_history")  # in result.json's protocol, but no part of the evaluation
_MAX_MODELS_OPEN = 1


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Write the page of some runs, whole or not at all; the same runs give the same bytes.

    Args:
        paths: run folders, or their result.json files, of runs on one dataset.
        output: an .html file, which is overwritten.

    Raises:
        InputError: as `read_runs`; if `output` is a folder; if plotly is not installed.
    """
    if output.is_dir():
        raise InputError(f"output: {output} is a folder; name a file, for example {output / 'report.html'}")
    text = page(read_runs(paths))
    write_text(output, text)
    return output


def page(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    models = group_runs(runs)
    drawn = _Drawn()
    parts = {
        "results": ("Results", _results(models)),
        "groups": ("Frequent and rare items", _groups(models, drawn)),
        "curves": ("Training", _curves(models, drawn)),
        "inside": ("Inside the models", _inside(models, drawn)),
        "items": ("Best and hardest items", _items(models)),
        "settings": ("Settings and versions", _settings(models)),
    }
    dataset = str(runs[0].report["dataset"])
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, (title, _) in parts.items())
    body = "\n".join(section(name, title, content) for name, (title, content) in parts.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(dataset)}: report of recbole-pad</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Report of recbole-pad</p>
<h1>{escape(dataset)}</h1>
{_headline(models)}
{_facts(models)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>{escape(words.FOOTER)}</footer>
<script id="figures" type="application/json">{embed(drawn.specs)}</script>
<script>{_plotly()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


class _Drawn:
    """The figures of the page by the id of their place, numbered in order."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}

    def panels(self, shown: Sequence[Figure], with_legend: bool = True, in_row: int = 2) -> str:
        """Figures side by side, two or three in a row, fewer on a narrow screen, with one legend above."""
        if not shown:
            return ""
        legend = figures.legend_of(shown) if with_legend else []
        entries = "".join(
            f'<li><i class="{escape(style)}" style="border-color:{colour}"></i><span>{escape(name)}</span></li>'
            for name, colour, style in legend
        )
        boxes = "\n".join(self._box(figure) for figure in shown)
        keys = f'<ul class="legend">{entries}</ul>\n' if len(legend) > 1 else ""
        return f'{keys}<div class="panels of-{in_row}">\n{boxes}\n</div>'

    def _box(self, figure: Figure) -> str:
        identity = f"figure-{len(self.specs) + 1}"
        self.specs[identity] = figure.spec
        return (
            f"<figure><figcaption>{escape(figure.title)}</figcaption>"
            f'<div class="plot" id="{identity}" role="img" aria-label="{escape(figure.alt)}"></div></figure>'
        )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("the page needs plotly: pip install plotly") from error
    return str(get_plotlyjs())


def _headline(models: Sequence[Model]) -> str:
    """The result with the highest NDCG@10 on test, in one sentence, where runs have one."""
    masked = models[0].runs[0].report.get("protocol", {}).get("mask_history", True)
    protocol = "masked" if masked else "unmasked"
    found = []
    for model in models:
        for phase in model.phases:
            where = ("phases", phase, "test", protocol, "all")
            ndcg, hit = model.stat(*where, "ndcg@10"), model.stat(*where, "hit@10")
            if ndcg is not None and hit is not None:
                found.append((ndcg.mean, hit.mean, model, phase))
    if not found:
        return ""
    ndcg_mean, hit_mean, model, phase = max(found, key=lambda entry: entry[0])
    name = model.label if len(model.phases) == 1 else f"{model.label} after {phase}"
    means = " (means over seeds)" if len(model.runs) > 1 else ""
    among = "" if len(found) == 1 else "The highest NDCG@10 among these results: "
    return (
        f'<p class="lead">{escape(among)}{escape(name)}, HR@10 {100 * hit_mean:.2f} % and NDCG@10 '
        f"{100 * ndcg_mean:.2f} %{means}, on test, {tables.PROTOCOLS[protocol]}.</p>"
    )


def _facts(models: Sequence[Model]) -> str:
    runs = [run for model in models for run in model.runs]
    protocols = [run.report.get("protocol", {}) for run in runs]
    facts = {
        "Runs": f"{len(runs)} of {_count(len(models), 'model')}",
        "Seeds": _each(run.seed for run in runs),
        "Date": _dates(runs),
        "Split": _each(_split(protocol) for protocol in protocols),
        "Withheld items": _each(_withheld(protocol) for protocol in protocols),
        "Ranking": _each(_ranking(protocol.get("ranking")) for protocol in protocols),
        "History, for early stopping": _each(_history(protocol.get("mask_history")) for protocol in protocols),
        "Early stopping on": _each(protocol.get("valid_metric") for protocol in protocols),
        "History length": _each(_length(protocol.get("max_history")) for protocol in protocols),
        "Machine": _each(_machine(run.report.get("machine")) for run in runs),
    }
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items() if text
    )
    return f'<dl class="facts">{entries}</dl>'


def _each(values: Any) -> str:
    """The different values, in order."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({run.date for run in runs if run.date})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else ""


def _split(protocol: dict[str, Any]) -> str | None:
    split = protocol.get("split")
    if not isinstance(split, dict) or not split:
        return None
    (kind, how), *_ = split.items()
    if kind == "LS" and how in _HELD_OUT:
        return _HELD_OUT[how]
    if kind == "TS" and protocol.get("global_time_cuts"):
        return f"by time, the same two cuts for all users: {how}"
    return f"{_SPLITS.get(kind, kind)} {how}"


def _withheld(protocol: dict[str, Any]) -> str | None:
    share = protocol.get("cold_split")
    return None if not share else f"{100 * share:g} % of the items, drawn with seed {protocol.get('cold_split_seed')}"


def _protocols_differ(models: Sequence[Model]) -> bool:
    """Whether runs differ in how they were split, ranked or masked: PAD's positions are no part of that."""
    protocols = [run.report.get("protocol", {}) for model in models for run in model.runs]
    compared = [{key: own for key, own in protocol.items() if key not in _OF_THE_MODEL} for protocol in protocols]
    return any(protocol != compared[0] for protocol in compared)


def _ranking(ranking: Any) -> str | None:
    modes = dict.fromkeys(ranking.values()) if isinstance(ranking, dict) else [ranking]
    names = ["full: against all items of the catalogue" if mode == "full" else str(mode) for mode in modes if mode]
    return ", ".join(names) or None


def _history(masked: Any) -> str | None:
    if masked is None:
        return None
    return "masked: what a user had before is not ranked" if masked else "not masked"


def _length(n: Any) -> str | None:
    return None if n is None else f"last {n} items"


def _machine(machine: Any) -> str | None:
    if not isinstance(machine, dict):
        return None
    system = str(machine.get("platform", "")).split("-")[0]
    return f"{machine.get('device')}, {machine.get('cpus')} CPUs, {system}"


def _results(models: Sequence[Model]) -> str:
    parts = [paragraph(words.RESULTS)]
    if _protocols_differ(models):
        parts.append(f'<p class="warning">{escape(words.PROTOCOLS_DIFFER)}</p>')
    parts += [tables.results(models, "test", protocol) for protocol in tables.PROTOCOLS]
    parts.append(tables.plain_results(models))
    validation = "\n".join(tables.results(models, "valid", protocol) for protocol in tables.PROTOCOLS).strip()
    if validation:
        parts.append(details("Validation results", validation))
    cold = "\n".join(tables.cold_split(models, protocol) for protocol in tables.PROTOCOLS).strip()
    if cold:
        parts += ["<h3>Withheld items</h3>", paragraph(words.WITHHELD), cold]
    return _joined(parts)


def _groups(models: Sequence[Model], drawn: _Drawn) -> str:
    by_frequency = figures.groups(models, "frequency", "masked", "train frequency of the target")
    by_bin = figures.groups(models, "bins", "masked", "bin of the target, 1 = most frequent")
    if not by_frequency and not by_bin:
        return paragraph(words.NO_GROUPS)
    parts = [
        paragraph(words.GROUPS),
        drawn.panels(by_frequency),
    ]
    if by_bin:
        parts += [
            "<h3>By bin</h3>",
            paragraph(words.BINS),
            drawn.panels(by_bin),
        ]
    unmasked = [
        drawn.panels(figures.groups(models, kind, "unmasked", axis))
        for kind, axis in (
            ("frequency", "train frequency of the target"),
            ("bins", "bin of the target, 1 = most frequent"),
        )
    ]
    if any(unmasked):
        parts.append(details("The same, history not masked", "\n".join(unmasked)))
    numbers = [
        tables.group_numbers(models, kind, protocol) for protocol in tables.PROTOCOLS for kind in ("frequency", "bins")
    ]
    parts.append(details("The numbers", "\n".join(numbers)))
    return _joined(parts)


def _curves(models: Sequence[Model], drawn: _Drawn) -> str:
    phases = list(dict.fromkeys(phase for model in models for phase in model.phases))
    metrics = dict.fromkeys(look_up(run.report, "protocol", "valid_metric") for model in models for run in model.runs)
    metric = " or ".join(str(name) for name in metrics if name) or "metric"
    shown = [figure for phase in phases for figure in figures.learning_curves(models, phase, metric)]
    parts = []
    if shown:
        parts.append(paragraph(words.CURVES))
        parts.append(drawn.panels(shown))
    if not any("validation" in figure.title for figure in shown):
        parts.append(f'<p class="note">{escape(words.NO_CURVES)}</p>')
    parts.append(tables.training(models))
    return _joined(parts)


def _inside(models: Sequence[Model], drawn: _Drawn) -> str:
    found = [(model, content) for model in models if (content := _inside_one(model, drawn))]
    if not found:
        return paragraph(words.NO_INSIDE)
    parts = [
        details(model.label, content, is_open=number < _MAX_MODELS_OPEN)
        for number, (model, content) in enumerate(found)
    ]
    return _joined([paragraph(words.INSIDE), *parts])


def _inside_one(model: Model, drawn: _Drawn) -> str:
    parts = []
    phase = model.last_phase_with("diagnostics", "gate", "experts")
    if phase is not None:
        parts += [
            "<h3>Gate</h3>",
            paragraph(words.GATE),
            drawn.panels(figures.gate(model, phase)),
        ]
    phase = model.last_phase_with("diagnostics", "mmd", "after")
    if phase is not None:
        parts += [
            "<h3>Alignment</h3>",
            paragraph(words.ALIGNMENT.format(phase=phase)),
            drawn.panels([figures.mmd(model, phase)]),
        ]
    kept = tables.kept(model)
    if kept:
        parts += [
            "<h3>What is kept</h3>",
            paragraph(words.KEPT),
            kept,
        ]
    table = tables.spaces(model)
    phase = model.last_phase_with("diagnostics", "spaces")
    if phase is not None and table:
        parts += [
            "<h3>Shape of the spaces</h3>",
            paragraph(words.SHAPE),
            drawn.panels([figures.spectrum(model, phase)]),
            table,
        ]
    parts.append(_planes(model, drawn))
    return _joined(parts)


def _planes(model: Model, drawn: _Drawn) -> str:
    run = next((run for run in model.runs if len(run.spaces.get("count", ()))), None)
    names = [name for name in SPACES if run is not None and name in run.spaces]
    if run is None or not names:
        return ""
    return _joined(
        [
            "<h3>The spaces in two dimensions</h3>",
            paragraph(words.PLANES.format(n=len(run.spaces["count"]), seed=run.seed)),
            _scale(run),
            drawn.panels(figures.planes(run, names), with_legend=False, in_row=3),
        ]
    )


def _scale(run: Run) -> str:
    """The colours of the planes, as a strip with its two ends."""
    strip = f'<i style="background:linear-gradient(to right,{",".join(figures.SCALE)})"></i>'
    return f'<p class="scale">train frequency 1 {strip} {10 ** figures.top_power(run):,}</p>'


def _items(models: Sequence[Model]) -> str:
    parts: list[str] = []
    for model in models:
        run = next((run for run in model.runs if look_up(run.report, "items", "best") is not None), None)
        if run is None:
            continue
        lists = run.report["items"]
        least = lists.get("at_least")
        content = "".join(
            f"<div>{tables.items(lists.get(name) or [], caption + model.label)}</div>"
            for name, caption in (("best", "Ranked best by "), ("hardest", "Ranked worst by "))
        )
        note = paragraph(f"Items that are targets of at least {_count(int(least or 1), 'test row')}, seed {run.seed}.")
        parts.append(details(model.label, f'{note}<div class="pair">{content}</div>', is_open=not parts))
    if not parts:
        return paragraph(words.NO_ITEMS)
    return _joined([paragraph(words.ITEMS), *parts])


def _settings(models: Sequence[Model]) -> str:
    parts = [
        paragraph(words.SETTINGS),
        tables.versions(models),
    ]
    for model in models:
        for run in model.runs:
            name = f"{model.label}, seed {run.seed}"
            content = [f"<pre><code>{escape(_command(run))}</code></pre>"]
            if run.settings:
                content.append(tables.settings(run.settings, f"Set for {name} (config.yaml)"))
            if run.all_settings:
                defaults = {key: value for key, value in run.all_settings.items() if key not in run.settings}
                content.append(
                    details("Defaults", tables.settings(defaults, f"All other keys of {name} (all_settings.yaml)"))
                )
            if not run.settings and not run.all_settings:
                content.append(paragraph(words.NO_SETTINGS))
            content.append(f'<p class="note">Run folder: {escape(run.name)}</p>')
            parts.append(details(name, "\n".join(content)))
    return _joined(parts)


def _command(run: Run) -> str:
    """A command that trains the run again; our command line takes no value with an equals sign, a file does."""
    known = [f"--model={run.report['model']}", f"--dataset={run.report['dataset']}"]
    given = {key: value for key, value in run.settings.items() if key not in ("model", "dataset", "resume")}
    if any(value is None or "=" in str(value) for value in given.values()):
        return shlex.join(["recbole-pad", "run", *known, "--config_files=config.yaml"])
    if "seed" not in given and run.seed is not None:
        given["seed"] = run.seed
    words = [*known, *(f"--{key}={value}" for key, value in given.items())]
    return " \\\n  ".join(["recbole-pad run", *map(shlex.quote, words)])


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part)
