"""What RecBole 1.2.1 needs to run on today's numpy, torch and setuptools; nothing else is changed.

`apply()` runs when RecBole is imported (see `activation`). Each repair is guarded, so a second call changes nothing.
Each function says what breaks and where.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from recbole_pad.patching import replace

_NUMPY_ALIASES = {
    "float_": "float64",
    "complex_": "complex128",
    "unicode_": "str_",
    "bool8": "bool_",
    "complex": "complex128",
    "bool": "bool_",
    "int": "int_",
    "float": "float64",
    "object": "object_",
    "str": "str_",
    "long": "int_",
}


def apply() -> None:
    """Make `recbole` importable and correct in this process.

    Raises:
        ImportError: if pandas 3 or newer is installed; RecBole is silently wrong on it.
    """
    _refuse_pandas_3()
    _numpy_aliases()
    _silence_recbole()
    _import_models_without_anomaly_mode()
    _import_quick_start()
    _trusted_checkpoint_loading()


def _refuse_pandas_3() -> None:
    import pandas

    if int(pandas.__version__.split(".")[0]) >= 3:
        raise ImportError(
            f"pandas {pandas.__version__} is installed, but RecBole 1.2.1 is silently wrong on pandas 3 "
            "(missing feature values stay NaN, sequence lengths are miscounted). "
            'Install an older one: pip install "pandas>=2.2,<3"'
        )


def _numpy_aliases() -> None:
    """RecBole names numpy types that numpy 2 removed; `np.bool8` is also read by ray 2.6.3."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for old, new in _NUMPY_ALIASES.items():
            if not hasattr(np, old):
                setattr(np, old, getattr(np, new))


def _silence_recbole() -> None:
    """RecBole's and ray's own warnings about newer libraries: nothing a user of this version can act on."""
    for module, category in (
        (r"recbole\.", FutureWarning),
        (r"recbole\.", DeprecationWarning),
        (r"ray\.", UserWarning),
    ):
        warnings.filterwarnings("ignore", category=category, module=module)


def _import_models_without_anomaly_mode() -> None:
    """`sequential_recommender/sine.py` switches autograd's anomaly mode on for the whole process: undo it."""
    import torch

    before = torch.is_anomaly_enabled()
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(before)


def _import_quick_start() -> None:
    """Import `recbole.quick_start`; where ray cannot be imported, a stub stands in only meanwhile."""
    try:
        importlib.import_module("ray.tune")
    except Exception:  # ray fails in many ways: ImportError, AttributeError on numpy 2, missing pkg_resources
        for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
            del sys.modules[name]
        with _ray_stub():
            importlib.import_module("recbole.quick_start")
    else:
        importlib.import_module("recbole.quick_start")


@contextmanager
def _ray_stub() -> Iterator[None]:
    ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
    tune.report = lambda **metrics: None  # type: ignore[attr-defined]
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        yield
    finally:  # a stub left behind makes find_spec("ray") raise in transformers
        sys.modules.pop("ray", None)
        sys.modules.pop("ray.tune", None)


@contextmanager
def trusting_torch_load() -> Iterator[None]:
    """`torch.load` reads whole objects (`weights_only=False`) inside the block, as before torch 2.6.

    RecBole's checkpoints hold its `Config` object. Use it only on files that you trust.
    """
    import torch

    original = torch.load

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("weights_only", False)
        return original(*args, **kwargs)

    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def _trusted_checkpoint_loading() -> None:
    """`Trainer.evaluate`, `resume_checkpoint` and `load_data_and_model` read RecBole checkpoints again."""
    import recbole.quick_start
    import recbole.quick_start.quick_start as quick_start_module
    from recbole.trainer import Trainer

    for owner, name in (
        (Trainer, "evaluate"),
        (Trainer, "resume_checkpoint"),
        (quick_start_module, "load_data_and_model"),
    ):
        replace(owner, name, _trusting)
    recbole.quick_start.load_data_and_model = quick_start_module.load_data_and_model


def _trusting(function: Callable[..., Any]) -> Callable[..., Any]:
    def trusting(*args: Any, **kwargs: Any) -> Any:
        with trusting_torch_load():
            return function(*args, **kwargs)

    return trusting
