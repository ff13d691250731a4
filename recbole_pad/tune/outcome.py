"""What a search leaves: `best.yaml`, `trials.csv` and a table of the best trials."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from recbole_pad.dataset_prep.files import write_text, write_whole
from recbole_pad.tune.trial import PHASES, REASON, RESULT, SECONDS, SETTINGS

_NO_REASON = "its process ended without a word (killed, or out of memory?)"


def ranked(study: Study) -> list[FrozenTrial]:
    """The completed trials, best first."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted(done, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


def counts(study: Study) -> dict[str, int]:
    """Number of trials by state, ``complete``, ``pruned``, ``fail``, ``running`` and ``waiting``."""
    found = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    return {state.name.lower(): found[state] for state in TrialState}


def reason(trial: FrozenTrial) -> str:
    """Why a trial was pruned or has failed; empty for others."""
    known = trial.user_attrs.get(REASON, "")
    return known or (_NO_REASON if trial.state == TrialState.FAIL else "")


def shown(settings: dict[str, Any]) -> str:
    """Settings as words of a command line."""
    return " ".join(f"--{key}={_short(value)}" for key, value in settings.items())


def write_best(folder: Path, best: FrozenTrial, given: dict[str, Any]) -> Path:
    """Write ``best.yaml``: the study's settings with the best trial's over them, for --config_files."""
    path = folder / "best.yaml"
    text = yaml.safe_dump({**given, **best.user_attrs[SETTINGS]}, sort_keys=False, allow_unicode=True)
    head = f"# trial {best.number}, validation score {best.value!r}\n"
    write_whole(path, lambda temporary: temporary.write_text(head + text, encoding="utf-8"))
    return path


def write_trials(folder: Path, study: Study, keys: Iterable[str]) -> Path:
    """Write ``trials.csv``: one line per trial of the study, also those of other workers."""
    path, keys = folder / "trials.csv", list(keys)
    trials = study.get_trials(deepcopy=False)
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.user_attrs.get(RESULT) or {}))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["trial", "state", "score", *keys, "epochs", "seconds", *metrics, "reason"])
    for trial in trials:
        settings, result = trial.user_attrs.get(SETTINGS, {}), trial.user_attrs.get(RESULT) or {}
        phases = trial.user_attrs.get(PHASES, {})
        score = trial.value if trial.state == TrialState.COMPLETE else None
        lines.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                score,
                *(settings.get(key) for key in keys),
                sum(phase["epochs"] for phase in phases.values() if not phase["reused_from"]) if phases else None,
                trial.user_attrs.get(SECONDS),
                *(result.get(name) for name in metrics),
                reason(trial),
            ]
        )
    write_text(path, text.getvalue())
    return path


def table(study: Study, metric: str, keys: Iterable[str]) -> str:
    """The five best trials as a Markdown table."""
    keys = list(keys)
    lines = [f"| trial | {metric} | {' | '.join(keys)} | seconds |", "| --- " * (len(keys) + 3) + "|"]
    for trial in ranked(study)[:5]:
        settings = trial.user_attrs[SETTINGS]
        cells = [_short(settings[key]) if key in settings else "" for key in keys]
        seconds = f"{trial.user_attrs[SECONDS]:.0f}"
        lines.append(f"| {trial.number} | {trial.value:.6f} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")
