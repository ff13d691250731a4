import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from recbole.trainer import Trainer

from recbole_pad import compat


def run_fresh(code: str, cwd: Path) -> str:
    """Standard output of a new Python process; its last line."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("version", ["3.0.0", "3.1.2", "12.0"])
def test_pandas_3_is_refused_with_the_reason_and_the_remedy(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pandas, "__version__", version)
    with pytest.raises(ImportError, match=r"silently wrong on pandas 3.*pip install \"pandas>=2.2,<3\"") as info:
        compat.apply()
    assert version in str(info.value)


@pytest.mark.parametrize("version", ["2.2.0", "2.3.3"])
def test_pandas_2_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pandas, "__version__", version)
    compat._refuse_pandas_3()


@pytest.mark.parametrize(
    ("alias", "stands_for"),
    [
        ("float_", np.float64),
        ("complex_", np.complex128),
        ("unicode_", np.str_),
        ("bool8", np.bool_),
        ("float", float),
        ("int", int),
        ("bool", bool),
        ("object", object),
        ("str", str),
        ("complex", complex),
    ],
)
def test_the_numpy_names_that_recbole_uses_are_there(alias: str, stands_for: type):
    """As numpy 1.26 had them, or as its deprecated aliases of the built-in types."""
    assert np.dtype(getattr(np, alias)) == np.dtype(stands_for)


def test_numpy_names_that_exist_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np, "bool8", "theirs", raising=False)
    monkeypatch.delattr(np, "float_")
    compat._numpy_aliases()
    assert np.bool8 == "theirs"
    assert np.float_ is np.float64


def test_a_second_apply_wraps_nothing_again():
    import recbole.quick_start
    import recbole.quick_start.quick_start as module

    def wrapped():
        return (
            Trainer.evaluate,
            Trainer.resume_checkpoint,
            module.load_data_and_model,
            recbole.quick_start.load_data_and_model,
        )

    before = wrapped()
    assert all(hasattr(function, "__wrapped__") for function in before)
    assert not any(hasattr(function.__wrapped__, "__wrapped__") for function in before[1:])
    compat.apply()
    assert wrapped() == before


def test_trusting_torch_load_reads_objects_inside_the_block_only(tmp_path: Path):
    torch.save({"object": Path("x")}, tmp_path / "file.pth")
    original = torch.load
    with compat.trusting_torch_load():
        assert torch.load(tmp_path / "file.pth") == {"object": Path("x")}
    assert torch.load is original
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "file.pth")


def test_trusting_torch_load_keeps_an_explicit_choice(tmp_path: Path):
    torch.save({"object": Path("x")}, tmp_path / "file.pth")
    with compat.trusting_torch_load(), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "file.pth", weights_only=True)


def test_trusting_torch_load_is_undone_after_an_error(tmp_path: Path):
    original = torch.load
    with pytest.raises(FileNotFoundError), compat.trusting_torch_load():
        torch.load(tmp_path / "absent.pth")
    assert torch.load is original


def test_importing_the_plugin_leaves_anomaly_mode_off():
    """RecBole's SINE, imported in this process, switches it on for the whole process."""
    assert "recbole.model.sequential_recommender.sine" in sys.modules
    assert not torch.is_anomaly_enabled()


NO_RAY = """
    import sys
    from importlib.machinery import PathFinder

    class WithoutRay:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return None if name.split(".")[0] == "ray" else PathFinder.find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutRay
"""
BROKEN_RAY = """
    import pathlib, sys

    folder = pathlib.Path("broken/ray")
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from ray import worker")
    (folder / "worker.py").write_text("")
    (folder / "tune.py").write_text("import numpy; numpy.no_such_name")
    sys.path.insert(0, "broken")
"""
IMPORT_AND_LOOK = """
    import torch

    torch.autograd.set_detect_anomaly(True)
    import recbole
    import recbole_pad.quick_start
    import importlib.util, json
    import recbole.quick_start.quick_start as module

    module.tune.report(loss=1.0)  # what objective_function calls
    print(json.dumps({
        "modules": [name for name in sys.modules if name.split(".")[0] == "ray"],
        "spec": importlib.util.find_spec("ray") is not None,
        "anomaly": torch.is_anomaly_enabled(),
        "objective": callable(recbole_pad.quick_start.objective_function),
    }))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setup", "installed"), [(NO_RAY, "false"), (BROKEN_RAY, "true")], ids=["no ray", "broken ray"]
)
def test_without_a_usable_ray_quick_start_imports_and_no_stub_stays(setup: str, installed: str, tmp_path: Path):
    """Here RecBole is imported first, and the user had switched anomaly mode on: it stays on."""
    assert run_fresh(textwrap.dedent(setup) + textwrap.dedent(IMPORT_AND_LOOK), tmp_path) == (
        f'{{"modules": [], "spec": {installed}, "anomaly": true, "objective": true}}'
    )
