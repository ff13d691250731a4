"""The import ladder: a module imports from lower rungs and from its own package, never from a higher rung."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Lowest first. Entries of one rung do not import each other; modules of one package may.
LADDER: list[set[str]] = [
    {"dataset_prep"},
    {"errors", "keys"},
    {"registry", "phases", "patching", "seeding", "distributed", "launch"},
    {"budget"},
    {"process_group"},
    {"compat"},
    {"nn", "backbones", "averaging"},
    {"backbone_classes"},
    {"config", "property_files"},
    {"data", "checkpoint", "optimizers", "model_keys", "settings_layers", "averaging_trainer"},
    {"model", "evaluation", "baselines", "input_files"},
    {"phase_trainers", "fast_evaluation", "rivals"},
    {"trainer"},
    {"registration", "speedups", "diagnose", "training"},
    {"activation", "preflight", "result"},
    {"quick_start"},
    {"demo", "tune", "experiments", "report", "recommend"},
    {"__main__"},
]
RUNG = {name: height for height, names in enumerate(LADDER) for name in names}
WITHOUT_RECBOLE = {
    "dataset_prep",
    "errors",
    "registry",
    "phases",
    "seeding",
    "nn",
    "backbones",
    "averaging",
    "evaluation",
}
# Packages outside the standard library that a part may use; parts not listed are free.
ALLOWED = {
    "errors": set(),
    "registry": set(),
    "phases": set(),
    "nn": {"torch", "numpy"},
    "backbones": {"torch"},
    "averaging": {"torch"},
    "seeding": {"torch", "numpy"},
    "evaluation": {"torch", "numpy", "scipy"},
    "report": {"numpy", "yaml", "plotly"},
}


def module_files() -> dict[str, Path]:
    """Dotted name below recbole_pad (`nn.gate`, "" for the package itself) -> file."""
    files = {}
    for folder, prefix in ((ROOT / "recbole_pad", ()), (ROOT / "dataset_prep", ("dataset_prep",))):
        for path in folder.rglob("*.py"):
            parts = [*prefix, *path.relative_to(folder).with_suffix("").parts]
            files[".".join(part for part in parts if part != "__init__")] = path
    return files


FILES = module_files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(name: str) -> list[str]:
    """Absolute dotted names that a module imports, inside functions too; `from a import b` gives `a.b`."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["recbole_pad", *name.split(".")]
                if FILES[name].name != "__init__.py":
                    package = package[:-1]
                package = package[: len(package) - (node.level - 1)]
                base = ".".join([*package, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def own_modules(name: str) -> set[str]:
    """The modules of ours that a module imports; "" stands for the package itself (its version)."""
    found = set()
    for target in imported(name):
        if target.split(".")[0] != "recbole_pad":
            continue
        parts = target.split(".")[1:]
        while parts and ".".join(parts) not in FILES:  # the last word may be a function or a class
            parts.pop()
        found.add(".".join(parts))
    return found


def part(name: str) -> str:
    """The ladder's word for a module: its package, or the module itself."""
    return name.split(".")[0]


def test_every_module_has_its_place_on_the_ladder():
    missing = {part(name) for name in FILES if name} - set(RUNG)
    assert not missing, f"new modules, to be written into LADDER: {missing}"
    assert sum(len(names) for names in LADDER) == len(RUNG), "a name is on two rungs"


def test_the_reader_of_imports_sees_relative_nested_and_plain_imports():
    assert {"dataset_prep.text_encoders", "dataset_prep.errors"} <= own_modules("dataset_prep.encode_text")
    assert "quick_start" in own_modules("__main__")  # imported inside a function
    assert {"nn.gate", "phases", "config"} <= own_modules("model.pad")
    assert "" in own_modules("checkpoint")  # reads the version


@pytest.mark.parametrize("name", sorted(name for name in FILES if name))
def test_no_module_imports_from_a_higher_rung(name: str):
    for target in own_modules(name) - {""}:
        lower = RUNG[part(target)] < RUNG[part(name)]
        assert lower or part(target) == part(name), f"{name} must not import {target}"


def test_modules_of_one_package_do_not_import_each_other_in_a_circle():
    graph = {name: own_modules(name) - {""} for name in FILES if name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_modules_read_nothing_but_the_version_from_the_package_itself():
    for name, tree in TREES.items():
        if "" not in own_modules(name):
            continue
        read = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "recbole_pad"
        }
        assert read <= {"__version__"}, name


@pytest.mark.parametrize("name", sorted(name for name in FILES if part(name) in WITHOUT_RECBOLE))
def test_the_maths_and_the_preparation_know_nothing_of_recbole(name: str):
    assert not [target for target in imported(name) if target.split(".")[0] == "recbole"]


@pytest.mark.parametrize("name", sorted(name for name in FILES if part(name) in ALLOWED))
def test_low_rungs_use_few_packages(name: str):
    outside = {target.split(".")[0] for target in imported(name)} - {"recbole_pad", *sys.stdlib_module_names}
    assert outside <= ALLOWED[part(name)]


def test_dataset_prep_imports_nothing_of_recbole_pad():
    inside = {name for name in FILES if part(name) == "dataset_prep"}
    for name in inside:
        assert own_modules(name) <= inside, name


@pytest.mark.parametrize("name", sorted(name for name in FILES if part(name) in {"nn", "evaluation"}))
def test_maths_and_metrics_do_not_look_into_the_config(name: str):
    looked_up = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "config"
    ]
    assert not looked_up
