"""The plugin comes alive with RecBole: `import recbole_pad` and `recbole-pad --help` load nothing heavy."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def activate_with_recbole() -> None:
    """Repair RecBole and register PAD with it: now if RecBole is imported already, else as part of its import."""
    if "recbole" in sys.modules:
        activate()
    elif not any(isinstance(finder, _RecBoleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RecBoleFinder())


def activate() -> None:
    """Apply `compat`, then `registration` and `speedups`. Idempotent.

    Raises:
        ImportError: if the installed pandas is one on which RecBole is silently wrong.
    """
    from recbole_pad import compat, registration, speedups

    compat.apply()
    registration.register()
    speedups.install()


class _RecBoleFinder(importlib.abc.MetaPathFinder):
    """Finds `recbole` as usual, once, and has `activate` run right after its (empty) package module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of `recbole` with our loader around its own; None for every other module."""
        if name != "recbole":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenActivate(spec.loader)
        return spec


class _ThenActivate(importlib.abc.Loader):
    """A module's own loader, and `activate` after it. Everything else is asked of the own loader."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if name == "_own":  # asked for before __init__, by copy and pickle
            raise AttributeError(name)
        return getattr(self._own, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the own loader."""
        module: ModuleType | None = self._own.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with its own loader, which is put back, then activate the plugin."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        activate()
