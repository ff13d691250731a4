"""Experiments as data: the files of properties/study, one question each, with the variants that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_pad.errors import InputError
from recbole_pad.phases import PHASES
from recbole_pad.property_files import properties, property_names, read_yaml
from recbole_pad.registry import nearest, pick

FOLDER = "study"
_OF_EXPERIMENT = (
    "title",
    "question",
    "settings",
    "tuning",
    "reference",
    "show",
    "extra",
    "hidden",
    "variants",
)
_OF_VARIANT = ("model", "start", "start_experts", "tune", "include")
_OF_TUNING = ("seeds", "settings")
_TRAINED_EXPERTS = ("rec", "align", "llm")


@dataclass(frozen=True)
class StudyVariant:
    """One variant of an experiment.

    Attributes:
        label: its name.
        settings: its own, over those of the experiment.
        model: a model name.
        start: label of the variant whose trained experts it takes, with the same seed; or None.
        start_experts: which ones.
        tune: key -> values, of which validation data choose one; {} for nothing to choose.
    """

    label: str
    settings: Mapping[str, Any]
    model: str = "PAD"
    start: str | None = None
    start_experts: tuple[str, ...] = _TRAINED_EXPERTS
    tune: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: its word on the command line.
        title: of its page.
        question: what it asks.
        settings: of all variants.
        variants: label -> variant, in the order of the table.
        reference: label of the variant that the others are tested against.
        show: phases that get a row; empty: the last one.
        extra: heading -> path below a phase's entry of result.json, for further columns.
        hidden: labels that are run (others start from them) but not shown.
        tuning: ``seeds`` (how many of the seeds, from the first) and ``settings`` (over the variant's) of the runs
            that choose; with ``phases`` among the settings, they start from nothing.
    """

    name: str
    title: str
    question: str
    settings: Mapping[str, Any]
    variants: Mapping[str, StudyVariant]
    reference: str
    show: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    tuning: Mapping[str, Any] = field(default_factory=dict)


def experiment_names() -> list[str]:
    """The experiments that come with the package."""
    return property_names(FOLDER)


def read_experiment(word: str) -> Experiment:
    """Read an experiment that comes with the package, by its name, or one of a user's, by its file.

    Raises:
        InputError: for an unknown name, or a file with a key that is not understood.
    """
    if word.endswith((".yaml", ".yml")):
        path = Path(word)
        return parse_experiment(path.stem, read_yaml(path, f"experiment: {path} does not exist"))
    known = experiment_names()
    if word not in known:
        raise InputError(
            f"experiment: {word!r} is not known{nearest(word, known)}; choose one of {', '.join(known)}, or a yaml file"
        )
    return parse_experiment(word, properties(FOLDER, f"{word}.yaml"))


def parse_experiment(name: str, content: Any) -> Experiment:
    """Check the content of a file and make an experiment of it; errors name the key."""
    if not isinstance(content, dict) or not isinstance(content.get("variants"), dict) or not content["variants"]:
        raise InputError(f"{name}: needs a mapping with the keys title, question and variants")
    _refuse_unknown(name, content, _OF_EXPERIMENT)
    variants = {
        str(label): _variant(f"{name}: {label}", str(label), own or {}) for label, own in content["variants"].items()
    }
    for label, variant in variants.items():
        if variant.start is not None and variant.start not in variants:
            near = nearest(variant.start, list(variants))
            raise InputError(f"{name}: {label}: start: {variant.start!r} is no variant{near}")
    for label in variants:
        _refuse_circle(f"{name}: {label}", label, variants)
    hidden = tuple(content.get("hidden", ()))
    shown = [label for label in variants if label not in hidden]
    reference = content.get("reference", shown[0])
    if reference not in shown:
        raise InputError(
            f"{name}: reference: {reference!r} is no variant that is shown; choose one of {', '.join(shown)}"
        )
    for phase in content.get("show", ()):
        pick(dict.fromkeys(PHASES), phase, f"{name}: show")
    tuning = dict(content.get("tuning") or {})
    _refuse_unknown(f"{name}: tuning", tuning, _OF_TUNING)
    settings = dict(content.get("settings") or {})
    return Experiment(
        name,
        str(content.get("title", name)),
        str(content.get("question", "")).strip(),
        settings,
        variants,
        reference,
        tuple(content.get("show", ())),
        dict(content.get("extra") or {}),
        hidden,
        tuning,
    )


def _variant(where: str, label: str, content: Any) -> StudyVariant:
    if not isinstance(content, dict):
        raise InputError(f"{where}: {content!r} must be a mapping of settings")
    own = {key: value for key, value in content.items() if key not in _OF_VARIANT}
    if "include" in content:
        own = {**_included(where, content["include"]), **own}
    words = {key: content[key] for key in _OF_VARIANT if key in content and key != "include"}
    if "start_experts" in words:
        words["start_experts"] = tuple(words["start_experts"])
    tune = words.get("tune", {})
    if (
        not isinstance(tune, dict)
        or len(tune) > 1
        or not all(isinstance(values, list) and values for values in tune.values())
    ):
        raise InputError(f"{where}: tune: {tune!r} must be one {{key: [values]}}")
    return StudyVariant(label, own, **words)


def _included(where: str, name: str) -> dict[str, Any]:
    included = properties("settings", f"{name}.yaml")
    if not included:
        raise InputError(f"{where}: include: properties/settings/{name}.yaml does not exist")
    return included


def _refuse_circle(where: str, label: str, variants: Mapping[str, StudyVariant]) -> None:
    path: list[str] = []
    at: str | None = label
    while at is not None:
        if at in path:
            raise InputError(
                f"{where}: start: {' from '.join([*path, at])} goes in a circle; let one start from nothing"
            )
        path.append(at)
        at = variants[at].start


def _refuse_unknown(where: str, content: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in content:
        if key not in known:
            raise InputError(
                f"{where}: {key!r} is not understood{nearest(str(key), list(known))}; known: {', '.join(known)}"
            )
