"""A backbone by its name: RecBole's model of that name, or a user's own class (``module:Class``); spec and settings."""

from __future__ import annotations

import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import recbole
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import get_model

from recbole_pad.backbones import BACKBONES, UNSUPPORTED, BackboneSpec
from recbole_pad.errors import InputError
from recbole_pad.registry import pick

OWN_SPEC = BackboneSpec("prefixes", fixed_length=True)  # of an own class that says nothing and inherits no backbone
_RECBOLE_SETTINGS = Path(recbole.__file__).parent / "properties" / "model"
_LIBRARIES = ("recbole", "torch", "builtins", "typing", "abc")


def is_own(name: Any) -> bool:
    """Whether a backbone is a user's own class, written ``module:Class``."""
    return isinstance(name, str) and ":" in name


def backbone_class(name: str) -> type[Any]:
    """The class of a backbone.

    Raises:
        InputError: if an own class cannot be imported, or is no sequential model of RecBole's kind.
    """
    if not is_own(name):
        found: type[Any] = get_model(name)
        return found
    try:
        own = pkgutil.resolve_name(name)
    except Exception as error:  # importing a user's module may raise anything
        raise InputError(
            f"backbone: {name!r} cannot be imported ({type(error).__name__}: {error}); write module:Class, and put the "
            "folder of the module on PYTHONPATH"
        ) from error
    if not (inspect.isclass(own) and issubclass(own, SequentialRecommender)):
        raise InputError(
            f"backbone: {name!r} is no class that inherits from recbole.model.abstract_recommender."
            "SequentialRecommender; name one that does"
        )
    if not all(getattr(sys.modules[source.__module__], "__file__", None) for source in _own_part(own)):
        raise InputError(f"backbone: {name!r} is not defined in a file; put the class into a module of its own")
    return own


def backbone_spec(name: str) -> BackboneSpec:
    """The spec of a backbone; of an own class its attribute `pad_backbone`, or what is safe for what it inherits from.

    Raises:
        InputError: if the model cannot serve as a backbone (with the reason), is unknown, or cannot be imported.
    """
    if is_own(name):
        spec = getattr(backbone_class(name), "pad_backbone", None) or _inherited_spec(name)
        if not isinstance(spec, BackboneSpec) or spec.rows not in ("sequences", "prefixes"):
            raise InputError(
                f"backbone: pad_backbone of {name} is {spec!r}; make it a recbole_pad.backbones.BackboneSpec, rows "
                "sequences or prefixes"
            )
        return spec
    if name in UNSUPPORTED:
        raise InputError(
            f"backbone: {name} cannot serve as a backbone of PAD: {UNSUPPORTED[name]}; choose one of "
            f"{', '.join(BACKBONES)}, or write module:Class for one of your own"
        )
    return pick(BACKBONES, name, "backbone")


def _inherited_spec(name: str) -> BackboneSpec:
    """How the RecBole model that an own class inherits from is called, without what the class may have changed."""
    ancestor = _recbole_ancestor(name)
    if ancestor not in BACKBONES:
        return OWN_SPEC
    return replace(BACKBONES[ancestor], rows="prefixes", fixed_length=True, position_table=None, causal_encoder=None)


def _recbole_ancestor(name: str) -> str:
    """The nearest model of RecBole's that a backbone is or inherits from; `SequentialRecommender` at the last."""
    return next(source.__name__ for source in backbone_class(name).__mro__ if source.__module__.startswith("recbole."))


def _own_part(own: type[Any]) -> list[type[Any]]:
    """An own class and what it inherits from, as far as it is nobody's library."""
    return [source for source in own.__mro__ if source.__module__.partition(".")[0] not in _LIBRARIES]


def settings_file(name: str) -> Path | None:
    """RecBole's property file of a backbone; of an own class that of the model it inherits from, or None."""
    file = _RECBOLE_SETTINGS / f"{_recbole_ancestor(name)}.yaml"
    return file if file.is_file() else None


def own_settings_files(name: str) -> list[Path]:
    """``<Class>.yaml`` beside the modules of an own class and of those it inherits from, these first; if present."""
    if not is_own(name):
        return []
    files = [_module_file(source).with_name(f"{source.__name__}.yaml") for source in _own_part(backbone_class(name))]
    return [file for file in reversed(files) if file.is_file()]


def own_files(name: str) -> list[Path]:
    """The files of an own class, modules and settings: results change with them. Empty for RecBole's models."""
    modules = {_module_file(source) for source in _own_part(backbone_class(name))} if is_own(name) else set()
    return [*sorted(modules), *own_settings_files(name)]


def _module_file(source: type[Any]) -> Path:
    return Path(str(sys.modules[source.__module__].__file__))


def train_rows_of(train_rows: str, backbone: str) -> str:
    """Resolve ``auto`` to the rows that the backbone allows.

    Raises:
        InputError: if ``sequences`` is asked for a backbone without causal states.
    """
    spec = backbone_spec(backbone)
    if train_rows == "auto":
        return spec.rows
    if train_rows == "sequences" and spec.rows == "prefixes":
        raise InputError(
            f"train_rows: sequences needs a causal state at every position, which {backbone} does not give; "
            "use train_rows: auto or prefixes"
        )
    return train_rows


@contextmanager
def errors_of_own_class(name: str, doing: str) -> Iterator[None]:
    """Any error of an own class inside the block is one clear error, with the line that raised it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not is_own(name):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raised = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise InputError(
            f"backbone: {name}: {doing} it raises {raised}; its keys and their defaults belong into <Class>.yaml "
            "beside the module, how it is called into its pad_backbone: docs/backbones.md"
        ) from error
