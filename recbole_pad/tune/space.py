"""Search spaces: a YAML file with one line per key, read and checked. Format: docs/tuning.md."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from recbole_pad.errors import InputError
from recbole_pad.property_files import property_file, property_names
from recbole_pad.registry import nearest

_SCORING = "trials would be scored in different ways"
_DATA = "trials would train on different data"
_RUN = "it belongs to the run, not to the model"
NOT_SEARCHED: dict[str, str] = {
    **dict.fromkeys("metrics topk valid_metric valid_metric_bigger eval_args mask_history protocol".split(), _SCORING),
    **dict.fromkeys("dataset data_path load_col user_inter_num_interval item_inter_num_interval".split(), _DATA),
    **dict.fromkeys("model checkpoint_dir phase_cache resume gpu_id use_gpu nproc world_size local_rank".split(), _RUN),
    "seed": "the best of several seeds is luck, not a setting",
}
_CONTEXTS = 8  # random settings in which a value is tried before it is called impossible


class Range(Protocol):
    """The values that a key may have."""

    def suggest(self, trial: Any, key: str) -> Any:
        """The value that Optuna's trial takes."""

    def ends(self) -> list[Any]:
        """The values to check: the ends of an interval, every choice."""

    def draw(self, rng: random.Random) -> Any:
        """One value at random."""

    def label(self, value: Any) -> Any:
        """The value as Optuna stores it, or None where the range does not hold it."""

    def grid(self) -> list[Any] | None:
        """All values as Optuna stores them, or None where there is no end of them."""


@dataclass(frozen=True)
class Choice:
    """One of some values; lists and dicts are stored as JSON, other values as they are."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, key: str) -> Any:
        """See `Range`."""
        chosen = trial.suggest_categorical(key, self.grid())
        return self.values[self.grid().index(chosen)]

    def ends(self) -> list[Any]:
        """See `Range`."""
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        """See `Range`."""
        return rng.choice(self.values)

    def label(self, value: Any) -> Any:
        """See `Range`."""
        return _label(value) if value in self.values else None

    def grid(self) -> list[Any]:
        """See `Range`."""
        return [_label(value) for value in self.values]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones for kind ``int``."""

    kind: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any, key: str) -> Any:
        """See `Range`."""
        if self.kind == "int":
            return trial.suggest_int(key, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def ends(self) -> list[Any]:
        """See `Range`."""
        return [self.low, self.high]

    def draw(self, rng: random.Random) -> Any:
        """See `Range`."""
        if self.step or self.kind == "int":
            step = self.step or 1
            return self.low + step * rng.randrange(int((self.high - self.low) / step + 1.5))
        return rng.uniform(self.low, self.high)

    def label(self, value: Any) -> Any:
        """See `Range`."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return None
        on_grid = self.step is None or _is_whole((value - self.low) / self.step)
        return value if on_grid and (self.kind == "float" or isinstance(value, int)) else None

    def grid(self) -> list[Any] | None:
        """See `Range`."""
        if self.kind == "float" or self.log:
            return None
        return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))


@dataclass(frozen=True)
class Parameter:
    """One line of a space.

    Attributes:
        key: a config key, or ``phase.key``.
        range: its values.
        when: other keys and their values with which this key is searched at all; else the config's own value stands.
    """

    key: str
    range: Range
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        name: the file, for messages.
        parameters: in the order of the file.
        content: the file's content as plain values, for comparison.
    """

    name: str
    parameters: tuple[Parameter, ...]
    content: dict[str, Any]

    def settings(self, choose: Callable[[Parameter], Any], base: Any) -> dict[str, Any]:
        """One setting of the space.

        Args:
            choose: gives a parameter its value.
            base: the config of the study, for conditions on keys that are not searched, or not active.

        Returns:
            key -> value, of the parameters whose conditions hold.
        """
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if all(chosen.get(key, base[key]) in values for key, values in parameter.when.items()):
                chosen[parameter.key] = choose(parameter)
        return chosen

    def suggest(self, trial: Any, base: Any) -> dict[str, Any]:
        """The settings of one of Optuna's trials."""
        return self.settings(lambda parameter: parameter.range.suggest(trial, parameter.key), base)

    def defaults(self, base: Any) -> dict[str, Any]:
        """What the config itself has for each key, as Optuna stores it, where the space holds that value."""
        labels = {entry.key: entry.range.label(_value_of(base, entry.key)) for entry in self.parameters}
        return {key: label for key, label in labels.items() if label is not None}

    def only(self, keys: Collection[str]) -> Space:
        """The space of some of the keys."""
        return replace(self, parameters=tuple(entry for entry in self.parameters if entry.key in keys))

    def grid(self) -> dict[str, list[Any]]:
        """All values of each key.

        Raises:
            InputError: if a key has no end of values, or depends on another.
        """
        values: dict[str, list[Any]] = {}
        for parameter in self.parameters:
            every = parameter.range.grid()
            if every is None or parameter.when:
                why = "depends on another key (when)" if parameter.when else "has no end of values"
                raise InputError(
                    f"{self.name}: {parameter.key}: {why}, so there is no grid; write choice: [...] without when, "
                    "or use --sampler=tpe"
                )
            values[parameter.key] = every
        return values

    def check_keys(self, known: Collection[str], fixed: Collection[str]) -> None:
        """Refuse keys that nobody reads, that cannot be searched, or that are fixed.

        Args:
            known: the config keys of the model.
            fixed: keys of the command line, which wins over a trial's settings.

        Raises:
            InputError: naming the key and the remedy.
        """
        for parameter in self.parameters:
            key = parameter.key
            for name in (key, *parameter.when):
                if name not in known:
                    near = nearest(name, sorted(known), cutoff=0.7)
                    raise InputError(f"{self.name}: unknown config key {name!r}{near}; correct or remove it")
            if key in NOT_SEARCHED:
                raise InputError(f"{self.name}: {key} cannot be searched: {NOT_SEARCHED[key]}; remove it")
            if key in fixed:
                raise InputError(
                    f"{self.name}: {key} is searched, but the command line fixes it; remove one of the two"
                )

    def check_values(self, accepted: Callable[[dict[str, Any]], None], base: Any) -> None:
        """Refuse a value that the config refuses whatever the other keys are.

        Args:
            accepted: raises InputError for settings that cannot run.
            base: as in `settings`.

        Raises:
            InputError: naming file, key, value and the config's reason.
        """
        rng = random.Random(0)
        for parameter in self.parameters:
            for value in parameter.range.ends():
                reason = self._refusal(parameter, value, accepted, base, rng)
                if reason:
                    raise InputError(f"{self.name}: {parameter.key}: {value!r} is never possible: {reason}")

    def _refusal(
        self,
        parameter: Parameter,
        value: Any,
        accepted: Callable[[dict[str, Any]], None],
        base: Any,
        rng: random.Random,
    ) -> str:
        """Why no context takes the value; empty if one does, or if the key is active in none."""
        reason = ""
        for _ in range(_CONTEXTS):
            chosen = self.settings(lambda entry: value if entry is parameter else entry.range.draw(rng), base)
            if parameter.key not in chosen:
                continue
            try:
                accepted(chosen)
            except InputError as error:
                reason = str(error)
            else:
                return ""
        return reason


def read_space(name: str | None, model: str) -> Space:
    """Read a space file, or a space that is shipped.

    Args:
        name: a file, a shipped space, or None for the one of the model.
        model: the model's name.

    Raises:
        InputError: naming file, key, value and remedy.
    """
    shipped = property_names("space")
    name = name or model
    if name in shipped:
        return _parsed(f"space {name}", property_file("space", f"{name}.yaml").read_text(encoding="utf-8"))
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"space: {name} is neither a file nor a space that is shipped{nearest(name, shipped)}; shipped: "
            f"{', '.join(shipped)}. Write a file (docs/tuning.md) and set --space=FILE"
        )
    return _parsed(name, path.read_text(encoding="utf-8"))


def _parsed(name: str, text: str) -> Space:
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: is not YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{name}: is empty or no mapping; write lines such as learning_rate: {{float: [1e-4, 1e-2]}}")
    parameters: list[Parameter] = []
    for key, entry in content.items():
        parameters.append(_parameter(f"{name}: {key}", str(key), entry, list(content)))
    return Space(name, tuple(parameters), json.loads(json.dumps(content, default=str)))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-4 is a number, and that a key may stand there once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node, refused where a key comes twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parameter(where: str, key: str, entry: Any, all_keys: list[Any]) -> Parameter:
    kinds = [kind for kind in _KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise InputError(
            f"{where}: {entry!r} must be one of {{choice: [...]}}, {{float: [low, high]}}, {{int: [low, high]}}"
        )
    options = {name: value for name, value in entry.items() if name not in (kinds[0], "when")}
    words = _OPTIONS[kinds[0]]
    for name in options:
        if name not in words:
            near = nearest(str(name), [*words, "when"])
            raise InputError(
                f"{where}: {name!r} is not understood{near}; {kinds[0]} takes {', '.join((*words, 'when'))}"
            )
    when = _conditions(where, key, entry.get("when", {}), all_keys)
    return Parameter(key, _KINDS[kinds[0]](where, kinds[0], entry[kinds[0]], options), when)


def _conditions(where: str, key: str, when: Any, all_keys: list[Any]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, dict):
        raise InputError(f"{where}: when: {when!r} must be {{key: value}} or {{key: [values]}}")
    for other in when:
        if other in all_keys and all_keys.index(other) >= all_keys.index(key):
            raise InputError(f"{where}: when: {other} is decided later; write {other} above {key}")
    return {str(other): tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}


def _choice(where: str, kind: str, values: Any, options: dict[str, Any]) -> Choice:
    if not isinstance(values, list) or len(values) < 2:
        raise InputError(f"{where}: choice: {values!r} must be a list of two values or more")
    labels = [_label(value) for value in values]
    doubled = [value for value, label in zip(values, labels, strict=True) if labels.count(label) > 1]
    if doubled:
        raise InputError(f"{where}: choice: {doubled[0]!r} stands there twice (True equals 1); remove one")
    return Choice(tuple(values))


def _interval(where: str, kind: str, bounds: Any, options: dict[str, Any]) -> Interval:
    whole = kind == "int"
    what = "two whole numbers" if whole else "two numbers"
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(_is_number(bound, whole) for bound in bounds):
        raise InputError(f"{where}: {kind}: {bounds!r} must be {what}, [low, high]")
    low, high = bounds
    if low >= high:
        raise InputError(f"{where}: {kind}: {bounds!r}: low must be below high; a fixed value is --key=value")
    log, step = options.get("log", False), options.get("step")
    if not isinstance(log, bool):
        raise InputError(f"{where}: log: {log!r} is neither true nor false")
    if log and low <= 0:
        raise InputError(f"{where}: {kind}: {bounds!r}: low must be above 0 for log: true")
    if step is not None:
        if log or not _is_number(step, whole) or step <= 0 or not _is_whole((high - low) / step):
            raise InputError(
                f"{where}: step: {step!r} must be a number above 0 of which high - low is a multiple, without log"
            )
    if kind == "float":
        low, high = float(low), float(high)
    return Interval(kind, low, high, log, step)


_KINDS: dict[str, Callable[[str, str, Any, dict[str, Any]], Range]] = {
    "choice": _choice,
    "float": _interval,
    "int": _interval,
}
_OPTIONS: dict[str, tuple[str, ...]] = {"choice": (), "float": ("log", "step"), "int": ("log", "step")}


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (isinstance(value, int) or not whole)


def _is_whole(quotient: float) -> bool:
    return abs(quotient - round(quotient)) < 1e-9


def _label(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value)


def _value_of(config: Any, key: str) -> Any:
    """The config's value of a key; a ``phase.key`` that is not set has the plain key's."""
    value = config[key]
    return config[key.split(".", 1)[1]] if value is None and "." in key else value
