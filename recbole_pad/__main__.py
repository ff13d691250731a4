"""Commands: `recbole-pad run | tune | compare | ...` (see `_COMMANDS`), and `run_recbole`, with RecBole's flags."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_pad.dataset_prep.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command `recbole-pad`; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="recbole-pad", description="PAD: LLM-enhanced sequential recommendation inside RecBole."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, handler, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if arguments[:1] == [name]:  # the flags of another command may take heavy imports
            add(command)
        command.set_defaults(handler=handler)
    known, settings = parser.parse_known_args(arguments)
    known.typed = shlex.join(["recbole-pad", *arguments])  # for the record of a comparison
    return _guarded(known.handler, known, settings)


def run_recbole_main() -> int:
    """The command `run_recbole`: `recbole-pad run` under RecBole's name."""
    return main(["run", *sys.argv[1:]])


def _guarded(
    handler: Callable[[argparse.Namespace, list[str]], int], known: argparse.Namespace, settings: list[str]
) -> int:
    try:
        for setting in settings:
            if not setting.startswith("--") or setting.count("=") != 1:
                raise InputError(f"argument {setting!r} is not understood; settings are written --key=value")
        # every RecBole Config reads sys.argv: leave it the settings only
        sys.argv = [sys.argv[0], *settings]
        return handler(known, settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _refuse(settings: list[str], command: str) -> None:
    """For a command that takes its own flags only."""
    if settings:
        raise InputError(f"{command} does not know {' '.join(settings)}; see recbole-pad {command} --help")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", "-m", default="PAD", help="PAD or any RecBole model (default: PAD)")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="dataset name (default: ml-100k)")
    parser.add_argument("--config_files", default=None, help="yaml files, separated by spaces")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument("--port", default="5678", help="port of the first machine")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    parser.add_argument("--group_offset", type=int, default=0, help="rank of this machine's first process")
    parser.epilog = "Any setting of RecBole or PAD: --key=value, for example --backbone=GRU4Rec --align.mmd_weight=0.1"


def _run(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.evaluation.table import result_table
    from recbole_pad.quick_start import run

    files = known.config_files.split() if known.config_files else None
    result = run(
        known.model,
        known.dataset,
        files,
        nproc=known.nproc,
        world_size=known.world_size,
        ip=known.ip,
        port=known.port,
        group_offset=known.group_offset,
    )
    if result is not None:
        print(result_table([result["report"]]))
        if result["run_folder"]:
            print(f"run folder: {result['run_folder']}")
    return 0


def _add_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", "-d", required=True, help="dataset name")
    parser.add_argument("--data_path", default=None, help="folder that holds the dataset's folder")
    parser.add_argument(
        "--text_encoder", default=None, help="minilm, tfidf, ... (docs/encoders.md), a model or folder; several: A+B"
    )
    parser.add_argument("--text_fields", default=None, help="columns of the .item file, separated by commas")
    parser.add_argument("--text_template", default=None, help="instead of them: '{title}. {categories}. {brand}'")
    parser.add_argument("--text_vectors_dir", default=None, help="where vectors are written (default: text_vectors)")
    parser.add_argument("--stored_as", default="float32", help="float32, or float16 for files of half the size")
    parser.add_argument("--item_field", default="item_id", help="column of the item ids (default: item_id)")
    parser.add_argument("--field_separator", default="\t", help="between columns (default: a tab)")
    parser.add_argument("--batch_size", type=int, default=64, help="texts per forward pass")
    parser.add_argument("--nproc", type=int, default=1, help="processes that encode, each with the model loaded")
    parser.epilog = "A run that was killed goes on where it was. Several machines: torchrun. docs/encoders.md"


def _encode(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.config import columns_or_template
    from recbole_pad.dataset_prep.encode_text import encode_items
    from recbole_pad.dataset_prep.item_texts import ItemFile
    from recbole_pad.dataset_prep.text_encoders import encoder_parts
    from recbole_pad.process_group import torchrun_processes
    from recbole_pad.property_files import properties

    _refuse(settings, "encode")
    defaults: dict[str, Any] = {
        **properties("model", "PAD.yaml"),
        **properties("dataset", f"{known.dataset}.yaml"),
    }
    template = known.text_template or (None if known.text_fields else defaults["text_template"])
    fields = columns_or_template(known.text_fields or defaults["text_fields"], template)
    item_file = ItemFile(
        _dataset_folder(known.dataset, known.data_path) / f"{known.dataset}.item",
        known.item_field,
        known.field_separator,
    )
    parts = encoder_parts(known.text_encoder or defaults["text_encoder"])
    with torchrun_processes() as processes:
        for encoder in [part for part in parts if not part.startswith("file:")] or parts:  # finished ones are only read
            path = encode_items(
                item_file,
                Path(known.text_vectors_dir or defaults["text_vectors_dir"]),
                known.dataset,
                text_encoder=encoder,
                text_fields=fields,
                batch_size=known.batch_size,
                nproc=known.nproc,
                team=None if processes.alone else processes,
                stored_as=known.stored_as,
            )
            processes.wait()
            if processes.is_first:
                print(f"text vectors: {path}\nmanifest: {path.with_suffix('.json')}")
    return 0


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    from recbole_pad.dataset_prep.command import add_prepare

    add_prepare(parser)


def _prepare(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.dataset_prep.command import run_prepare

    _refuse(settings, "prepare")
    return run_prepare(known)


def _add_check(parser: argparse.ArgumentParser) -> None:
    from recbole_pad.dataset_prep.command import add_check

    add_check(parser)
    parser.set_defaults(data_path=None)


def _check(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.dataset_prep.command import run_check

    _refuse(settings, "check")
    known.data_path = _dataset_folder(known.dataset, known.data_path).parent
    return run_check(known)


def _dataset_folder(dataset: str, data_path: str | Path | None) -> Path:
    """Where RecBole looks for a dataset: ml-100k inside its own package, others below data_path."""
    if dataset == "ml-100k" and data_path is None:
        import recbole

        return Path(recbole.__file__).parent / "dataset_example" / dataset
    return Path(data_path or "dataset") / dataset


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or their result.json files")
    parser.add_argument("--split", choices=("test", "valid"), default="test")


def _table(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.evaluation.table import read_reports, result_table

    _refuse(settings, "table")
    print(result_table(read_reports(known.runs), known.split))
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or their result.json files, on one dataset")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.epilog = "What the page shows: docs/report.md"


def _report(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.report.page import write_report

    _refuse(settings, "report")
    print(f"page: {write_report(known.runs, known.output)}")
    return 0


def _add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run of PAD")
    parser.add_argument("--k", type=int, default=10, help="items for each user (default: 10)")
    parser.add_argument(
        "--users", default=None, help="ids separated by commas, or @FILE with one in a line (default: all)"
    )
    parser.add_argument("--repeats", action="store_true", help="list items that the user had before, too")
    parser.add_argument("--output", type=Path, default=Path("recommendations.tsv"), help="default: recommendations.tsv")
    parser.epilog = "Settings over those of the run: --key=value, for example --data_path=DIR. docs/recommend.md"


def _recommend(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.recommend import recommend

    n_lines = recommend(known.run, known.output, known.k, _users(known.users), known.repeats)
    print(f"{n_lines:,} lines: {known.output}")
    return 0


def _users(given: str | None) -> list[str] | None:
    if given is None or not given.startswith("@"):
        return None if given is None else [user.strip() for user in given.split(",")]
    file = Path(given[1:])
    if not file.is_file():
        raise InputError(f"users: {file} does not exist; give a file with one user in a line")
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line]
    except UnicodeError as error:
        raise InputError(f"users: {file} is not UTF-8: {error}; convert it") from error


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", "-m", default="PAD", help="PAD or any RecBole model (default: PAD)")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="dataset name (default: ml-100k)")
    parser.add_argument("--config_files", default=None, help="yaml files of settings, separated by spaces")
    parser.add_argument("--space", default=None, help="yaml file, or a shipped space (default: the model's name)")
    parser.add_argument("--trials", type=int, required=True, help="the study is finished with so many trials in all")
    parser.add_argument("--storage", default=None, help="FILE.log, a database URL, or none (default: the folder's)")
    parser.add_argument("--study", default="search", help="name of the search (default: search)")
    parser.add_argument("--timeout", type=float, default=None, help="seconds after which no trial is started")
    parser.add_argument("--sampler", default="tpe", help="tpe, random or grid (default: tpe)")
    parser.add_argument("--pruner", default="median", help="median, hyperband or none (default: median)")
    parser.add_argument("--metric", default=None, help="another valid_metric, for example Hit@10")
    parser.epilog = "Settings of all trials: --key=value; --seed=N is of training and of the sampler. docs/tuning.md"


def _tune(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.tune import tune

    try:
        found = tune(
            known.model,
            known.dataset,
            known.trials,
            space=known.space,
            config_file_list=known.config_files.split() if known.config_files else None,
            storage=known.storage,
            study=known.study,
            timeout=known.timeout,
            sampler=known.sampler,
            pruner=known.pruner,
            metric=known.metric,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the study", file=sys.stderr)
        return 130
    print(found["table"])
    print("trials: " + ", ".join(f"{number} {state}" for state, number in found["counts"].items() if number))
    print(f"best settings and all trials: {found['folder']}/best.yaml, trials.csv")
    return 0


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of all runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--cells", type=Path, default=Path("cells"), help="folder of the runs (default: cells)")
    parser.epilog = "Settings of all runs are also written --key=value. Finished runs are kept. docs/experiments.md"


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        action="extend",
        required=True,
        help="names, with settings of their own: PAD,SASRec,PAD:backbone=GRU4Rec; @NAME or @FILE.yaml: those of a file",
    )
    parser.add_argument("--datasets", nargs="+", action="extend", required=True, help="dataset names")
    parser.add_argument("--seeds", nargs="+", action="extend", help="seeds (default: 1)")
    parser.add_argument("--budget", type=int, default=None, help="seconds of training for each run (train_seconds)")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the tables")
    parser.add_argument("--name", default="comparison", help="of their files, without suffix (default: comparison)")
    _add_grid(parser)


def _compare(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.experiments.compare import compare
    from recbole_pad.experiments.variants import parse_variants, shared_settings

    shared = shared_settings([*known.set, *settings])
    if known.budget is not None:
        shared["train_seconds"] = known.budget
    found = compare(
        parse_variants(known.models),
        _words(known.datasets),
        _seeds(known.seeds),
        shared,
        known.output,
        known.cells,
        known.jobs,
        known.typed,
        known.name,
    )
    print(found.files[0].read_text(encoding="utf-8"))
    print(f"files: {', '.join(map(str, found.files))}")
    return 1 if found.failures else 0


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    from recbole_pad.experiments.definition import experiment_names

    parser.add_argument("name", help=f"{', '.join(experiment_names())}, or a yaml file")
    parser.add_argument("--dataset", "-d", required=True, help="dataset name")
    parser.add_argument("--seeds", nargs="+", action="extend", help="seeds (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("experiment"), help="folder of page, table and figure (default: experiment)"
    )
    _add_grid(parser)


def _experiment(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.experiments.definition import read_experiment
    from recbole_pad.experiments.experiment import run_experiment
    from recbole_pad.experiments.variants import shared_settings

    found = run_experiment(
        read_experiment(known.name),
        known.dataset,
        _seeds(known.seeds),
        shared_settings([*known.set, *settings]),
        known.output,
        known.cells,
        known.jobs,
        known.typed,
    )
    print(found.files[0].read_text(encoding="utf-8"))
    print(f"files: {', '.join(map(str, found.files))}")
    return 1 if found.failures else 0


def _words(given: list[str]) -> list[str]:
    return [word for text in given for word in text.split(",") if word]


def _seeds(given: list[str] | None) -> list[int]:
    words = _words(given or ["1"])
    for word in words:
        if not word.isdigit():
            raise InputError(f"seeds: {word!r} is no whole number from 0")
    return [int(word) for word in words]


def _no_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Any setting of RecBole or PAD: --key=value"


def _quickstart(known: argparse.Namespace, settings: list[str]) -> int:
    from recbole_pad.demo import quickstart

    return quickstart()


_COMMANDS: dict[
    str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, list[str]], int], str]
] = {
    "run": (_add_run, _run, "train and evaluate PAD or any RecBole model"),
    "tune": (_add_tune, _tune, "search the settings of a model"),
    "compare": (_add_compare, _compare, "run models through the same protocol and test which is better"),
    "experiment": (_add_experiment, _experiment, "run one of the paper's experiments and write its page"),
    "table": (_add_table, _table, "print the results of runs on one dataset as a table"),
    "recommend": (_add_recommend, _recommend, "write the items of the highest scores for every user of a run"),
    "report": (_add_report, _report, "write one HTML page about runs on one dataset"),
    "prepare": (_add_prepare, _prepare, "make a dataset of a public dump: Amazon, MIND, MovieLens, ..."),
    "check": (_add_check, _check, "validate a dataset's files, and print its statistics and leak probes"),
    "encode": (_add_encode, _encode, "make text vectors of a dataset's items"),
    "quickstart": (_no_flags, _quickstart, "PAD against SASRec on ml-100k, in minutes"),
}

if __name__ == "__main__":
    sys.exit(main())
