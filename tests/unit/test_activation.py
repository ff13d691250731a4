"""The plugin comes alive with RecBole, whatever is imported first.

Every case is a process of its own. All but the first test share one parent, which has loaded torch and the other
packages that RecBole needs, but neither RecBole nor ours, and forks for each case: a fraction of a second each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `activation` imports these two, in the middle of RecBole's import, and nobody else should: imported first, they would
# import RecBole, which would want them complete.
HOOKS = {"recbole_pad.registration", "recbole_pad.speedups"}

PARENT = """
import json, os, sys, traceback, warnings
warnings.simplefilter("ignore")
import numpy as np
np.bool8 = np.bool_  # ray 2.6.3 reads it; the plugin would set it
import colorama, colorlog, pandas, psutil, ray.tune, scipy.sparse, sklearn.metrics, tensorboard, texttable, thop, torch
import optuna, torch._dynamo, torch.nn.parallel, torch.utils.tensorboard, tqdm, yaml
before = [name for name in sys.modules if name.split(".")[0] in ("recbole", "recbole_pad")]
assert not before, before

def run(code):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        names = {}
        try:
            exec(code, names)
            content = {"found": names.get("found")}
        except BaseException:
            content = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as pipe:
            json.dump(content, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        content = json.load(pipe)
    os.waitpid(pid, 0)
    return content

cases = json.load(sys.stdin)
print(json.dumps({name: run(code) for name, code in cases.items()}))
"""

REGISTERED = """
import sys
import recbole_pad.keys, recbole_pad.model.pad, recbole_pad.trainer, recbole_pad.data.dataset
import recbole.config.configurator, recbole.data.dataset, recbole.data.utils, recbole.trainer
import recbole.utils.argument_list as arguments
from recbole.utils import get_model, get_trainer

def times(function, maker):
    return [make.__name__ for make in getattr(function, "_recbole_pad", ())].count(maker)

def finders(kind):
    return sum(type(finder).__name__ == kind for finder in sys.meta_path)

found = {
    "model": get_model("PAD") is recbole_pad.model.pad.PAD,
    "trainer": get_trainer(None, "PAD") is recbole.trainer.PADTrainer is recbole_pad.trainer.PADTrainer,
    "dataset": recbole.data.dataset.PADDataset is recbole_pad.data.dataset.PADDataset,
    "finders of the model": finders("_ModelFinder"),
    "settings": times(recbole.config.configurator.Config._load_internal_config_dict, "_with_our_settings"),
    "loaders": times(recbole.data.utils.get_dataloader, "_with_our_loaders"),
    "data keys": {arguments.dataset_arguments.count(key) for key in recbole_pad.keys.DATA_KEYS} == {1},
    "at most one finder of recbole": finders("_RecBoleFinder") <= 1,
    "recbole has its own loader": type(recbole.__spec__.loader).__name__ == "SourceFileLoader"
    and recbole.__loader__ is recbole.__spec__.loader,
}
"""
ONCE = {
    "model": True,
    "trainer": True,
    "dataset": True,
    "finders of the model": 1,
    "settings": 1,
    "loaders": 1,
    "data keys": True,
    "at most one finder of recbole": True,
    "recbole has its own loader": True,
}
ORDERS = {
    "ours, then RecBole": "import recbole_pad, recbole",
    "ours, then a module of RecBole": "import recbole_pad, recbole.quick_start",
    "RecBole, then ours": "import recbole, recbole_pad",
    "a module of RecBole, then ours": "import recbole.quick_start, recbole_pad",
    "RecBole's trainers, then ours": "import recbole.trainer, recbole_pad",
    "our config first": "import recbole_pad.config",
    "our model first": "import recbole_pad.model.pad",
    "RecBole's name of our model": "import recbole_pad, recbole.model.sequential_recommender.pad",
    "looking for RecBole": """
import importlib.util, sys
import recbole_pad
for _ in range(2):
    assert importlib.util.find_spec("recbole").name == "recbole"
    assert "recbole" not in sys.modules
import recbole""",
    "importing RecBole by name": "import importlib, recbole_pad; importlib.import_module('recbole.config')",
    "ours reloaded before RecBole": "import importlib, recbole_pad; importlib.reload(recbole_pad); import recbole",
    "ours reloaded after RecBole": "import importlib, recbole_pad, recbole; importlib.reload(recbole_pad)",
    "RecBole reloaded": "import importlib, recbole_pad, recbole; importlib.reload(recbole)",
    "activated twice more": """
import recbole_pad, recbole
from recbole_pad.activation import activate, activate_with_recbole
activate()
activate_with_recbole()""",
    "two threads": """
import threading
import recbole_pad
work = [threading.Thread(target=lambda: __import__("recbole.quick_start")) for _ in range(2)]
[thread.start() for thread in work]
[thread.join() for thread in work]""",
}


def modules() -> list[str]:
    """Dotted names of our modules: all but the commands, which the first test imports, and the hooks."""
    names = []
    for folder, prefix in (("recbole_pad", "recbole_pad"), ("dataset_prep", "recbole_pad.dataset_prep")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = [prefix, *path.relative_to(ROOT / folder).with_suffix("").parts]
            names.append(".".join(part for part in parts if part != "__init__"))
    return sorted(set(names) - {"recbole_pad.__main__", *HOOKS})


MODULES = modules()
FIRST = """
import sys
if "recbole" in sys.modules:
    from recbole.config.configurator import Config
    names = [make.__name__ for make in Config._load_internal_config_dict._recbole_pad]
    kinds = [type(finder).__name__ for finder in sys.meta_path]
    found = [names.count("_with_our_settings"), kinds.count("_ModelFinder")]"""
REGISTERED_FIRST = [1, 1]
OTHER = {
    "unpickled first": """
import pickle
PAD = pickle.loads(b"crecbole_pad.model.pad\\nPAD\\n.")  # protocol 0: a name and its module
from recbole.utils import get_model
found = get_model("PAD") is PAD""",
    "pickled and copied": """
import copy, pickle
import recbole_pad
import recbole.config.configurator, recbole.data.dataset, recbole.trainer
from recbole.utils import get_model
classes = [get_model("PAD"), recbole.trainer.PADTrainer, recbole.data.dataset.PADDataset]
found = [
    [pickle.loads(pickle.dumps(entry)) is entry, copy.deepcopy(entry) is entry, entry.__module__] for entry in classes
]""",
    "spec": """
import importlib.util
import recbole_pad
spec = importlib.util.find_spec("recbole")
import recbole
names = ("name", "origin", "submodule_search_locations")
found = {
    "same": [getattr(spec, name) == getattr(recbole.__spec__, name) for name in names],
    "package": spec.loader.is_package("recbole"),
    "source": "__version__" in spec.loader.get_source("recbole"),
}""",
    "others": """
import sys
import recbole_pad
(finder,) = (finder for finder in sys.meta_path if type(finder).__name__ == "_RecBoleFinder")
found = [finder.find_spec(name, None) for name in ("recbole_pad", "torch", "recbole.config", "recbole_gnn")]""",
    "broken": """
import sys
import recbole_pad
import pandas
version, pandas.__version__ = pandas.__version__, "3.0.0"
try:
    import recbole
    found = ["imported"]
except ImportError as error:
    found = [str(error).split(" ")[0], "recbole" in sys.modules]
pandas.__version__ = version
import recbole.quick_start
from recbole.utils import get_model
found.append(get_model("PAD").__module__)""",
}
CASES = {
    **{f"order {name}": code + REGISTERED for name, code in ORDERS.items()},
    **{f"first {name}": f"import {name}" + FIRST for name in MODULES},
    **OTHER,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case found, or its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        input=json.dumps(CASES),
        cwd=tmp_path_factory.mktemp("processes"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def found(outcomes: dict[str, Any], case: str) -> Any:
    assert "error" not in outcomes[case], outcomes[case]["error"]
    return outcomes[case]["found"]


def test_the_import_and_the_help_load_nothing_heavy(tmp_path: Path):
    code = """
import contextlib, io, sys
import recbole_pad, recbole_pad.tune
from recbole_pad.__main__ import main
for words in (["--help"], ["run", "--help"], ["tune", "--help"], ["encode", "--help"], ["table", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(words)
    assert "usage: recbole-pad" in printed.getvalue()
print(sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""
    heavy = ["torch", "recbole", "numpy", "pandas", "scipy", "ray", "optuna", "yaml", "transformers", "sklearn"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_pad_is_registered_once_in_whatever_order(outcomes: dict[str, Any]):
    for order in ORDERS:
        assert found(outcomes, f"order {order}") == ONCE, order


@pytest.mark.slow
def test_every_module_can_be_the_first_import(outcomes: dict[str, Any]):
    """Those that need RecBole bring it, and PAD with it."""
    registered = {name: found(outcomes, f"first {name}") for name in MODULES}
    assert set(map(str, registered.values())) == {"None", str(REGISTERED_FIRST)}
    for name in ("config", "model.pad", "trainer", "quick_start", "data.loader", "tune.search"):
        assert registered[f"recbole_pad.{name}"] == REGISTERED_FIRST, name
    for name in ("errors", "keys", "nn.gate", "registry"):
        assert registered[f"recbole_pad.{name}"] is None, name


@pytest.mark.slow
def test_a_pickle_of_the_model_can_be_read_by_a_process_that_imported_nothing(outcomes: dict[str, Any]):
    assert found(outcomes, "unpickled first") is True


@pytest.mark.slow
def test_the_classes_can_be_pickled_and_copied(outcomes: dict[str, Any]):
    places = ["recbole_pad.model.pad", "recbole_pad.trainer", "recbole_pad.data.dataset"]
    assert found(outcomes, "pickled and copied") == [[True, True, place] for place in places]


@pytest.mark.slow
def test_the_spec_of_recbole_answers_as_its_own(outcomes: dict[str, Any]):
    """`find_spec("recbole")` before the import, as tools do that look for installed packages."""
    assert found(outcomes, "spec") == {"same": [True, True, True], "package": True, "source": True}


@pytest.mark.slow
def test_other_modules_are_left_to_other_finders(outcomes: dict[str, Any]):
    assert found(outcomes, "others") == [None, None, None, None]


@pytest.mark.slow
def test_a_refused_environment_fails_the_import_and_can_be_repaired(outcomes: dict[str, Any]):
    assert found(outcomes, "broken") == ["pandas", False, "recbole_pad.model.pad"]
