"""The whole run on one screen: data, model, phases, evaluation, result file. For PAD and for every RecBole model."""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole.model
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import objective_function as _recbole_objective
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

import recbole_pad
from recbole_pad import checkpoint, diagnose, launch
from recbole_pad.budget import Budget, BudgetSpent
from recbole_pad.checkpoint import RunFolder
from recbole_pad.config import SELECTED_FEATURES, check_run, read_yaml
from recbole_pad.data.histories import cuts_globally
from recbole_pad.dataset_prep.header import read_header
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.evaluate import ItemGroups, evaluate_split, split_ranks
from recbole_pad.evaluation.rank_files import RANKS_FILE, write_ranks
from recbole_pad.fast_evaluation import evaluate_with_ranks
from recbole_pad.files import make_folder, write_text
from recbole_pad.keys import PROCESS_KEYS
from recbole_pad.phase_trainers import PhaseRecord, peak_memory_mb
from recbole_pad.process_group import require_shared
from recbole_pad.registration import MODELS, has_our_backbone, has_phases
from recbole_pad.registry import nearest
from recbole_pad.trainer import PADTrainer

RESULT_FORMAT = 1
_URLS = Path(recbole.config.__file__).parent.parent / "properties" / "dataset" / "url.yaml"


def run(
    model: str,
    dataset: str,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: str = "5678",
    group_offset: int = 0,
) -> dict[str, Any] | None:
    """As RecBole's `quick_start.run`: one process, several that this module spawns, or one of those that torchrun has.

    RecBole's own `run` spawns processes that never import this plugin; ours do. With a GPU for each process they use
    NCCL, else gloo on the CPU.

    Returns:
        What `run_recbole` returns, of the first process; None where that one runs elsewhere.

    Raises:
        InputError: as `run_recbole`, and for numbers of processes that do not go together.
        ProcessError: if one of several processes dies; it names the rank, the cause and how to continue.
    """
    given = launch.torchrun_settings()
    if given is not None:
        if nproc != 1 or world_size > 0:
            raise InputError("nproc, world_size: torchrun has started the processes already; leave these two out")
        return _run_of_torchrun(given, model, dataset, config_file_list, config_dict, saved)
    if nproc == 1 and world_size <= 0:
        return run_recbole(model, dataset, config_file_list, config_dict, saved)
    processes = launch.process_settings(nproc, world_size, ip, port, group_offset)
    _check_processes(nproc, model, dataset, config_file_list, config_dict)

    def arguments(mailbox: launch.Mailbox) -> tuple[Any, ...]:
        settings = {**(config_dict or {}), **processes}
        kwargs = {"config_dict": settings, "queue": mailbox, "saved": saved, "folder_opened": mailbox.run_folder}
        return model, dataset, config_file_list, kwargs

    result: dict[str, Any] | None = launch.run_processes(
        run_recboles, arguments, processes, lambda folder: _how_to_continue(model, folder)
    )
    return result


def _run_of_torchrun(given: dict[str, Any], model: str, *args: Any) -> dict[str, Any] | None:
    """One process of several that torchrun has started; torchrun ends the others if it fails."""
    dataset, files, settings, saved = args
    _check_processes(given["nproc"], model, dataset, files, settings)
    launch.end_on_sigterm()
    folders: list[Path] = []
    rank = given["offset"] + given["local_rank"]
    try:
        result = run_recbole(model, dataset, files, {**(settings or {}), **given}, saved, folder_opened=folders.append)
    except InputError:
        raise
    except Exception as error:
        cause, is_victim = launch.cause_of(error)
        if not is_victim:
            traceback.print_exc()
        remedy = partial(_how_to_continue, model)
        folder = str(folders[0]) if folders else None
        message = launch.failure_message(rank, given["world_size"], cause, folder, remedy)
        raise launch.ProcessError(message) from error
    return result if rank == 0 else None


def _how_to_continue(model: str, folder: str | None) -> str:
    if folder is None:
        return "Nothing had been saved: start it again"
    if has_phases(model):
        return f"To continue, give the same command and --resume={folder}"
    return f"What it has saved is in {folder}; {model} cannot be resumed, start it again"


def _check_processes(
    nproc: int, model: str, dataset: str, files: list[str] | None, settings: dict[str, Any] | None
) -> None:
    """Refuse here, once, what would fail in each process."""
    n_gpus = torch.cuda.device_count()  # before a Config sets CUDA_VISIBLE_DEVICES
    check_model(model)
    config = settled_config(model, dataset, files, settings)
    check_dataset(config)
    if not config["use_gpu"] or n_gpus == 0 or not torch.distributed.is_nccl_available():
        return
    if n_gpus < nproc:
        getLogger().warning("nproc: %d processes need as many GPUs, there are %d: running on the CPU", nproc, n_gpus)
    elif len(config["gpu_id"].split(",")) < nproc:
        every = ",".join(map(str, range(nproc)))
        raise InputError(f"gpu_id: {config['gpu_id']!r} names too few GPUs for nproc {nproc}; set --gpu_id={every}")


def run_recboles(rank: int, *args: Any) -> None:
    """Entry point of a spawned process; its pickle imports this plugin."""
    kwargs = args[-1]
    if not isinstance(kwargs, MutableMapping):
        raise ValueError(f"the last argument of run_recboles must be a dict, got {type(kwargs)}")
    kwargs["config_dict"] = {**kwargs.get("config_dict", {}), "local_rank": rank}
    run_recbole(*args[:3], **kwargs)


def objective_function(
    config_dict: dict[str, Any] | None = None, config_file_list: list[str] | None = None, saved: bool = True
) -> dict[str, Any]:
    """RecBole's objective for `HyperTuning` and ray; passed from here, a worker process knows PAD."""
    result: dict[str, Any] = _recbole_objective(config_dict, config_file_list, saved)
    return result


def run_recbole(
    model: str,
    dataset: str,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    queue: Any = None,
    folder_opened: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Train and evaluate a model, PAD or any of RecBole's, and write ``result.json`` into the run's folder.

    Args:
        model: a model name.
        dataset: a dataset name; ``<data_path>/<dataset>/<dataset>.inter`` must exist (ml-100k comes with RecBole).
        config_file_list: yaml files; later ones win.
        config_dict: settings that win over the files. Key `protocol` (``pad`` by default here, ``recbole``) chooses
            the evaluation settings of all sequential models alike.
        saved: write checkpoints and the result.
        queue: where the first process of a distributed run puts the result.
        folder_opened: called with the run's folder as soon as it is there.

    Returns:
        RecBole's keys (``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``), plus
        ``run_folder`` (None with ``saved=False``) and ``report``, the content of result.json.

    Raises:
        InputError: for an unknown model, dataset or setting.
    """
    check_model(model)
    config = settled_config(model, dataset, config_file_list, config_dict)
    if config["resume"] and not has_phases(model):
        raise InputError(f"resume: {model} has no phases to go on with; start it again, without resume")
    check_dataset(config)
    processes = Processes.of(config)
    init_seed(config["seed"], config["reproducibility"])
    _init_logger(config, processes)
    logger = getLogger()
    logger.info(config)

    whole = create_dataset(config)
    logger.info(whole)
    train_data, valid_data, test_data = data_preparation(config, whole)
    init_seed(config["seed"] + processes.rank, config["reproducibility"])
    network = get_model(model)(config, train_data._dataset).to(config["device"])
    logger.info(network)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    groups, split = _item_groups(config, whole, valid_data, test_data), config["eval_args"]["split"]
    diagnostics = diagnose.follow(trainer, groups, valid_data)
    started = time.monotonic()
    folder: RunFolder | None = None
    opened = folder_opened or (lambda path: None)
    if isinstance(trainer, PADTrainer):
        trainer.folder_opened = opened
    elif saved:
        folder = processes.from_first(lambda: RunFolder.create(config, f"seed{config['seed']}"))
        require_shared(folder.path, processes)
        opened(folder.path)
        trainer.saved_model_file = str(folder.model_file)
    curve: list[list[float]] = []
    best_valid_score, best_valid_result = _fit(
        trainer, train_data, valid_data, saved, lambda epoch, score: curve.append([epoch, score])
    )
    record = _stock_record(trainer, len(train_data), time.monotonic() - started, curve)
    processes.wait()
    pairs = None if groups is None else groups.pairs(split, "test")
    test_result, test_ranks = evaluate_with_ranks(
        trainer, test_data, pairs, load_best_model=saved, show_progress=config["show_progress"]
    )

    ranks: dict[str, Ranks] = {}
    report = {
        **_header(config, network),
        "best_valid_result": _plain(best_valid_result),
        "test_result": _plain(test_result),
        "phases": _phase_reports(trainer, record, groups, valid_data, test_data, test_ranks, ranks, diagnostics),
        **({} if groups is None else {"items": diagnose.item_report(whole, groups, list(ranks.values())[-1])}),
        "total_seconds": time.monotonic() - started,
        "versions": _versions(),
    }
    folder = trainer.folder if isinstance(trainer, PADTrainer) else folder
    if folder is not None and processes.is_first:
        if groups is not None:
            checkpoint.write_whole(folder.path / RANKS_FILE, partial(write_ranks, ranks, groups.counts))
        if diagnostics is not None:
            checkpoint.write_whole(folder.path / diagnose.SPACES_FILE, diagnostics.write)
        checkpoint.write_json(folder.result_file, report)
        given = {"model": model, "dataset": dataset, **config.external_config_dict}  # can be passed as --config_files
        given = {key: value for key, value in given.items() if key not in PROCESS_KEYS}
        _write_yaml(folder.path / "config.yaml", given)
        _write_yaml(folder.path / "all_settings.yaml", config.final_config_dict)
        logger.info(f"result: {folder.result_file}")
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "run_folder": None if folder is None else str(folder.path),
        "report": report,
    }
    if not config["single_spec"]:
        torch.distributed.destroy_process_group()
    if queue is not None and processes.is_first:
        queue.put(result)
    return result


def _init_logger(config: Config, processes: Processes) -> None:
    """RecBole's log, of the first process; the others write no file, and say nothing but errors."""
    make_folder(Path(config["checkpoint_dir"]), "checkpoint_dir")  # RecBole fails where two make it at once
    if processes.is_first:
        init_logger(config)
    else:
        logging.basicConfig(level=logging.ERROR)


def train(
    model: str,
    dataset: str,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    validated: Callable[[str, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train and validate as `run_recbole` does, without the test split and without a run folder: a trial of a search.

    Args:
        model: as of `run_recbole`.
        dataset: the same.
        config_file_list: the same.
        config_dict: the same.
        validated: called after each validation with the phase (``train`` for a stock model), the epoch in it, counted
            from 0, and the score; what it raises ends the training.

    Returns:
        ``best_valid_score`` and ``best_valid_result`` of the last phase, and ``phases``: name -> the phase's epochs,
        best_epoch, best_valid_score, seconds and reused_from.

    Raises:
        InputError: as `run_recbole`.
    """
    check_model(model)
    config = settled_config(model, dataset, config_file_list, config_dict)
    check_dataset(config)
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    network = get_model(model)(config, train_data._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    started = time.monotonic()

    def epoch_done(epoch: int, score: float) -> None:
        if validated is not None:
            validated(getattr(network, "phase", "train"), epoch, score)

    score, result = _fit(trainer, train_data, valid_data, False, epoch_done)
    stock = {"train": _stock_record(trainer, len(train_data), time.monotonic() - started, [])}
    records = trainer.records if isinstance(trainer, PADTrainer) else stock
    kept = ("epochs", "best_epoch", "best_valid_score", "seconds", "reused_from")
    return {
        "best_valid_score": score,
        "best_valid_result": _plain(result),
        "phases": {name: {key: getattr(record, key) for key in kept} for name, record in records.items()},
    }


def settled_config(
    model: str, dataset: str, config_file_list: list[str] | None, config_dict: dict[str, Any] | None
) -> Config:
    """RecBole's config of a run, under the protocol `pad` unless another one is asked for, its values checked.

    Raises:
        InputError: for an unknown key, a value that cannot be, or settings that do not go together.
    """
    settings = {"protocol": "pad", **_protocol_of_files(config_file_list), **(config_dict or {})}
    try:
        config = Config(model=model, dataset=dataset, config_file_list=config_file_list, config_dict=settings)
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(f"metrics, eval_args: {error}") from error
    except (ValueError, SyntaxError) as error:  # settings that do not go together, or come twice
        raise InputError(str(error)) from error
    check_run(config)
    return config


def _protocol_of_files(config_file_list: list[str] | None) -> dict[str, Any]:
    """RecBole lets a dict win over files; our default of `protocol` must not."""
    found: dict[str, Any] = {}
    for file in config_file_list or []:
        content = read_yaml(Path(file), f"config_files: {file} does not exist") or {}
        if not isinstance(content, dict):
            raise InputError(f"config_files: {file} holds no `key: value`, but {content!r}")
        if "protocol" in content:
            found["protocol"] = content["protocol"]
    return found


def model_names() -> list[str]:
    """Names of our models, and of RecBole's, from the class files of its model packages."""
    names: set[str] = set()
    for folder in Path(recbole.model.__file__).parent.glob("*_recommender"):
        text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "__init__.py")
        names |= {line[6:].split("(")[0].strip() for line in text.splitlines() if line.startswith("class ")}
    lower = {path.stem for path in Path(recbole.model.__file__).parent.glob("*_recommender/*.py")}
    return sorted({name for name in names if name.lower() in lower} | set(MODELS))


def check_model(model: str) -> None:
    """Refuse an unknown model name.

    Raises:
        InputError: naming the nearest known model.
    """
    known = model_names()
    if model not in known:
        raise InputError(
            f"model: {model!r} is not a model of RecBole or of ours{nearest(model, known)}; known: {', '.join(known)}"
        )


def check_dataset(config: Any) -> None:
    """Refuse a dataset that is not there, unless RecBole knows where to download it, or whose columns do not fit.

    Raises:
        InputError: naming the file that is missing, and the datasets that are there; or the column and the remedy.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    files = [f"{name}.{part}.inter" for part in config["benchmark_filename"] or []] or [f"{name}.inter"]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        for file in files:
            _check_header(folder / file, config)
        _check_features(folder / f"{name}.item", config)
        return
    downloadable = yaml.safe_load(_URLS.read_text(encoding="utf-8"))
    if not folder.exists() and name in downloadable:
        getLogger().warning("dataset %s is not in %s: RecBole tries to download it", name, folder.parent)
        return
    present = sorted(path.parent.name for path in folder.parent.glob("*/*.inter") if path.stem == path.parent.name)
    there = f"datasets in {folder.parent}: {', '.join(present)}" if present else f"{folder.parent} holds no dataset"
    raise InputError(
        f"dataset: {folder / missing[0]} does not exist{nearest(name, present)}; {there}. Set --data_path to "
        "the folder that holds the dataset's folder; ml-100k needs no data_path"
    )


def _check_header(file: Path, config: Any) -> None:
    """Refuse an `.inter` file without the columns of users, items and, where they are to be put in order, times.

    Raises:
        InputError: naming the column; or of `read_header`.
    """
    kinds = read_header(file, config["field_separator"], config["encoding"] or "utf-8")
    needed = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token"}
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not config["benchmark_filename"]:
        needed["TIME_FIELD"] = "float"
    for key, kind in needed.items():
        name = config[key]
        if name not in kinds:
            raise InputError(
                f"{file}: no column {name!r}; it has {', '.join(kinds)}: name one with --{key}=, or rename the column"
            )
        if kinds[name] != kind:
            raise InputError(f"{file}, line 1: column {name!r} is of type {kinds[name]}; write {name}:{kind}")


def _check_features(file: Path, config: Any) -> None:
    """Refuse a model of item features (SASRecF, FDSA, ...) where the `.item` file has none of their names.

    Raises:
        InputError: naming the column and those that there are; or of `read_header`.
    """
    if not config[SELECTED_FEATURES]:
        return
    if not file.is_file():
        raise InputError(f"{file} does not exist: {config['model']} reads columns of items ({SELECTED_FEATURES})")
    columns, loads = read_header(file, config["field_separator"], config["encoding"] or "utf-8"), config["load_col"]
    for feature in config[SELECTED_FEATURES]:
        if feature not in columns:
            raise InputError(
                f"{SELECTED_FEATURES}: {file} has no column {feature!r}; it has {', '.join(columns)}: name some "
                f"of them with --{SELECTED_FEATURES}="
            )
        if loads and loads.get("item") != "*" and feature not in loads.get("item", ()):
            raise InputError(
                f"load_col: {loads} leaves out the column {feature!r} of items, which {config['model']} reads; add "
                f"item: [{config['ITEM_ID_FIELD']}, {', '.join(config[SELECTED_FEATURES])}]"
            )


def _item_groups(config: Any, whole: Any, valid_data: Any, test_data: Any) -> ItemGroups | None:
    """Item frequencies and histories, where the report by groups is defined: full ranking, two splits."""
    split, mode = config["eval_args"]["split"], config["eval_args"]["mode"]
    groupable = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and (
        split.get("LS") == "valid_and_test" or cuts_globally(config)
    )
    if not groupable or set(mode.values()) != {"full"}:
        return None
    return ItemGroups.of(whole, valid_data, test_data, int(config["n_bins"] or 10))


def _phase_reports(
    trainer: Any,
    record: PhaseRecord,
    groups: ItemGroups | None,
    valid_data: Any,
    test_data: Any,
    test_ranks: Ranks | None,
    ranks: dict[str, Ranks],
    diagnostics: diagnose.Diagnostics | None,
) -> dict[str, Any]:
    """Each phase's own model on both held-out splits; a stock model has one phase, called ``train``.

    `test_ranks` are those of the last phase, which are not computed again. Test ranks of all phases go into `ranks`.
    """
    split = trainer.config["eval_args"]["split"]
    records = trainer.records if isinstance(trainer, PADTrainer) else {"train": record}
    reports: dict[str, Any] = {}
    for phase, kept in records.items():
        if isinstance(trainer, PADTrainer):
            trainer.enter_phase(phase)
        reports[phase] = {
            "seconds": kept.seconds,
            "peak_memory_mb": kept.peak_memory_mb,
            "epochs": kept.epochs,
            "best_epoch": kept.best_epoch,
            "best_valid_result": kept.best_valid_result,
            "train_loss": kept.train_loss,
            "valid_curve": kept.valid_curve,
            "reused_from": kept.reused_from,
        }
        if groups is not None:
            is_last = phase == list(records)[-1]
            ranks[phase] = (test_ranks if is_last else None) or split_ranks(
                trainer, test_data, groups.pairs(split, "test")
            )
            for name, loader, known in (("valid", valid_data, None), ("test", test_data, ranks[phase])):
                reports[phase][name] = evaluate_split(trainer, loader, groups, split, name, ranks=known)
        if diagnostics is not None:
            reports[phase]["diagnostics"] = diagnostics.report()
    return reports


def _fit(
    trainer: Any, train_data: Any, valid_data: Any, saved: bool, validated: Callable[[int, float], None]
) -> tuple[float | None, dict[str, float] | None]:
    """RecBole's `fit` within the budget of `train_seconds`; `validated` gets each epoch and its score."""
    budget = Budget(trainer.config["train_seconds"])

    def epoch_done(epoch: int, score: float) -> None:
        validated(epoch, float(score))
        budget(epoch, score)

    try:
        result: tuple[float | None, dict[str, float] | None] = trainer.fit(
            train_data,
            valid_data,
            saved=saved,
            show_progress=trainer.config["show_progress"],
            callback_fn=epoch_done,
        )
    except BudgetSpent:
        getLogger().info(f"train_seconds: {trainer.config['train_seconds']} s are over, training ends here")
        return trainer.best_valid_score, trainer.best_valid_result
    return result


def _stock_record(trainer: Any, n_batches: int, seconds: float, curve: list[list[float]]) -> PhaseRecord:
    """What RecBole's trainer remembers of its training, as a phase's record."""
    losses = list(getattr(trainer, "train_loss_dict", {}).values())
    mean = Processes.of(trainer.config).means([float(loss) for loss in losses])  # RecBole has that of its own rows
    record = PhaseRecord(
        epochs=len(losses),
        train_loss=[loss / max(n_batches, 1) for loss in mean],
        seconds=seconds,
        peak_memory_mb=peak_memory_mb(trainer.config["device"]),
        valid_curve=curve,
    )
    if trainer.best_valid_result:
        n_evaluations = len(losses) // max(trainer.eval_step, 1)  # a training-free model has no epochs
        record.best_epoch = (n_evaluations - trainer.cur_step) * trainer.eval_step - 1
        record.best_valid_score = float(trainer.best_valid_score)
        record.best_valid_result = _plain(trainer.best_valid_result) or {}
    return record


def _header(config: Any, network: Any) -> dict[str, Any]:
    text = network.text_fingerprint if hasattr(network, "text_fingerprint") else None
    return {
        "format": RESULT_FORMAT,
        "model": config["model"],
        "backbone": config["backbone"] if has_our_backbone(config["model"]) else None,
        "dataset": config["dataset"],
        "seed": config["seed"],
        "protocol": {
            "split": config["eval_args"]["split"],
            "ranking": config["eval_args"]["mode"],
            "mask_history": bool(config["mask_history"]),
            **{key: config[key] for key in ("cold_split", "cold_split_seed") if config["cold_split"]},
            **{key: config[key] for key in ("global_time_cuts",) if "TS" in config["eval_args"]["split"]},
            "valid_metric": config["valid_metric"],
            "max_history": config["MAX_ITEM_LIST_LENGTH"],
            "positions": config["positions"] if has_our_backbone(config["model"]) else None,
        },
        "text_vectors": text,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "command": sys.argv if multiprocessing.parent_process() else sys.orig_argv,  # sys.argv is cut for RecBole
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "device": str(config["device"])},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "recbole-pad": recbole_pad.__version__}
    for package in ("recbole", "torch", "numpy", "pandas", "transformers", "sentence-transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _plain(result: Any) -> dict[str, float] | None:
    """RecBole's metrics as plain floats: numpy 2 prints np.float64(...)."""
    return None if result is None else {key: float(value) for key, value in result.items()}


def _write_yaml(path: Path, settings: dict[str, Any]) -> None:
    text = yaml.safe_dump({key: yaml_value(value) for key, value in settings.items()})
    write_text(path, text)


def yaml_value(value: Any) -> Any:
    """A setting as YAML can hold it."""
    if isinstance(value, (list, tuple)):
        return [yaml_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): yaml_value(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
