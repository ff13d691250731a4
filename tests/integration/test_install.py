"""A normal and an editable install, each of a copy of the repository and into a fresh virtual environment.

No network: the dependencies are those of the running interpreter, linked without `recbole_pad` itself, so
that neither the developer's working tree nor an installed copy can stand in for the files under test.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.slow
pytest.importorskip("pip")

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
LOCAL = ["--quiet", "--no-deps", "--no-build-isolation"]
TREES = {
    "recbole_pad": "recbole_pad",
    "properties": "recbole_pad/properties",
    "dataset_prep": "recbole_pad/dataset_prep",
}

PROBE = """
import importlib.metadata, json
import recbole_pad, recbole_pad.properties, recbole_pad.dataset_prep.errors
scripts = importlib.metadata.distribution("recbole-pad").entry_points.select(group="console_scripts")
print(json.dumps({
    "recbole_pad": recbole_pad.__file__,
    "properties": recbole_pad.properties.__file__,
    "dataset_prep": recbole_pad.dataset_prep.errors.__file__,
    "scripts": {script.name: callable(script.load()) for script in scripts},
}))
"""


def call(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "recbole-pad"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in TREES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    source = dist / "source"  # the build leaves files in its folder; the editable install gets a clean one
    shutil.copytree(copy, source)
    call(*PIP, "wheel", *LOCAL, "--wheel-dir", dist, source, cwd=dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment without pip that sees the dependencies of the running one, less recbole-pad."""
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    linked = tmp_path / "dependencies"
    linked.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(folder).iterdir():
            if "recbole_pad" not in entry.name and entry.suffix != ".pth":
                (linked / entry.name).symlink_to(entry)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(call(python, "-c", purelib, cwd=tmp_path).strip())
    (site_packages / "dependencies.pth").write_text(f"{linked}\n")
    return tmp_path / "venv"


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        header = HeaderParser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in header.get_all("Requires-Dist", [])]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for requirement in parsed:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"not an exact pin: {requirement}"
        assert "+" not in specifier.version, f"a local build is not to be had elsewhere: {requirement}"
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in parsed}


def applies(requirement: Requirement, python: str, extra: str = "") -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_wheel_holds_every_module_and_property_file(copy: Path, wheel: Path) -> None:
    expected = {
        f"{target}/{file.relative_to(copy / tree).as_posix()}"
        for tree, target in TREES.items()
        for file in (copy / tree).rglob("*")
        if file.suffix in {".py", ".yaml", ".typed"}
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {"recbole_pad/properties/__init__.py", "recbole_pad/dataset_prep/errors.py"} <= packed
    assert any(name.startswith("recbole_pad/properties/model/") for name in packed)


@pytest.mark.parametrize("kind", ["normal", "editable"])
def test_install_finds_its_own_files_and_commands(
    kind: str, copy: Path, venv: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    what = ["--editable", copy] if kind == "editable" else [request.getfixturevalue("wheel")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    call(*PIP, "--python", venv / "bin" / "python", "install", *LOCAL, *what, cwd=elsewhere)

    printed = call(venv / "bin" / "python", "-c", PROBE, cwd=elsewhere)
    found = json.loads(printed.splitlines()[-1])

    assert found["scripts"] == {"run_recbole": True, "recbole-pad": True}
    for script in found["scripts"]:
        assert os.access(venv / "bin" / script, os.X_OK)
    for tree, target in TREES.items():
        file = Path(found[tree])
        if kind == "editable":
            assert file.parent == copy / tree
        else:
            assert file.is_relative_to(venv)
            assert file.parent.as_posix().endswith(f"site-packages/{target}")
    yamls = {p.name for p in (copy / "properties").rglob("*.yaml")}
    assert {p.name for p in Path(found["properties"]).parent.rglob("*.yaml")} == yamls


def test_constraints_satisfy_the_requirements_on_python_3_11(wheel: Path) -> None:
    pinned = pins()
    own = [r for r in requirements(wheel) if applies(r, "3.11") or applies(r, "3.11", extra="dev")]
    recbole = [Requirement(line) for line in metadata.requires("recbole") or []]
    for requirement in [*own, *(r for r in recbole if applies(r, "3.11"))]:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert version in requirement.specifier, f"constraints.txt has {version}, needed is {requirement}"


@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_newer_pythons_get_what_recbole_needs_except_recbole_and_ray(wheel: Path, python: str) -> None:
    own = {canonicalize_name(r.name): r for r in requirements(wheel) if applies(r, python)}
    needed = [Requirement(line) for line in metadata.requires("recbole") or []]
    assert {"recbole", "ray"}.isdisjoint(own)
    for requirement in needed:
        if requirement.name != "ray" and applies(requirement, python):
            ours = own[canonicalize_name(requirement.name)]
            exact = {str(s) for s in requirement.specifier if s.operator == "=="}
            assert exact <= {str(s) for s in ours.specifier}, f"RecBole wants {requirement}, setup.py {ours}"
