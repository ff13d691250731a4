"""The whole run on one screen: data, model, phases, evaluation, result file. For PAD and for every RecBole model."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, MutableMapping
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import objective_function as _recbole_objective
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

from recbole_pad import diagnose, launch
from recbole_pad.data.histories import cuts_globally
from recbole_pad.dataset_prep.files import make_folder
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError
from recbole_pad.evaluation.evaluate import ItemGroups
from recbole_pad.fast_evaluation import evaluate_with_ranks
from recbole_pad.preflight import checked_config
from recbole_pad.registration import has_phases
from recbole_pad.result import header, phase_reports, write_result
from recbole_pad.training import plain, training_of


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
    config = checked_config(model, dataset, files, settings)
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
    config = checked_config(model, dataset, config_file_list, config_dict)
    if config["resume"] and not has_phases(model):
        raise InputError(f"resume: {model} has no phases to go on with; start it again, without resume")
    if config["resume"] and config["train_seconds"] is not None:
        raise InputError("resume: the time of train_seconds would begin anew; start again, without one of them")
    processes = Processes.of(config)
    _init_logger(config, processes)
    getLogger().info(config)

    whole, train_data, valid_data, test_data, network = data_and_model(config, processes.rank)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    groups, split = _item_groups(config, whole, valid_data, test_data), config["eval_args"]["split"]
    diagnostics = diagnose.follow(trainer, groups, valid_data)
    started = time.monotonic()
    training = training_of(trainer, folder_opened or (lambda path: None))
    best_valid_score, best_valid_result = training.fit(train_data, valid_data, saved)
    pairs = None if groups is None else groups.pairs(split, "test")
    test_result, test_ranks = evaluate_with_ranks(
        trainer, test_data, pairs, load_best_model=saved, show_progress=config["show_progress"]
    )

    loaders = {"valid": valid_data, "test": test_data}
    phases, ranks = phase_reports(training, trainer, loaders, groups, test_ranks, diagnostics)
    report = {
        **header(config, network, whole),
        "best_valid_result": plain(best_valid_result),
        "test_result": plain(test_result),
        "phases": phases,
        **({} if groups is None else {"items": diagnose.item_report(whole, groups, list(ranks.values())[-1])}),
        "total_seconds": time.monotonic() - started,
    }
    folder = training.folder
    if folder is not None and processes.is_first:
        write_result(folder, report, config, ranks, groups, diagnostics)
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


def data_and_model(config: Any, rank: int = 0) -> tuple[Any, Any, Any, Any, Any]:
    """The whole dataset, its training, validation and test loader, and the model at its start.

    Args:
        config: as `checked_config` gives it.
        rank: of the process: each draws its own start values and samples, from the same data.
    """
    init_seed(config["seed"], config["reproducibility"])
    whole = create_dataset(config)
    getLogger().info(whole)
    train_data, valid_data, test_data = data_preparation(config, whole)
    init_seed(config["seed"] + rank, config["reproducibility"])
    network = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    getLogger().info(network)
    return whole, train_data, valid_data, test_data, network


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
    config = checked_config(model, dataset, config_file_list, config_dict)
    _, train_data, valid_data, _, network = data_and_model(config, config["local_rank"])
    training = training_of(get_trainer(config["MODEL_TYPE"], model)(config, network))
    score, result = training.fit(train_data, valid_data, False, validated)
    kept = ("epochs", "best_epoch", "best_valid_score", "seconds", "reused_from")
    return {
        "best_valid_score": score,
        "best_valid_result": plain(result),
        "phases": {name: {key: getattr(record, key) for key in kept} for name, record in training.records.items()},
    }


def _item_groups(config: Any, whole: Any, valid_data: Any, test_data: Any) -> ItemGroups | None:
    """Item frequencies and histories, where the report by groups is defined: full ranking, two splits, made here.

    Rows of ready-made files (`benchmark_filename`) do not say what histories they were cut from.
    """
    split, mode = config["eval_args"]["split"], config["eval_args"]["mode"]
    groupable = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and (
        split.get("LS") == "valid_and_test" or cuts_globally(config)
    )
    if not groupable or config["benchmark_filename"] or set(mode.values()) != {"full"}:
        return None
    return ItemGroups.of(whole, valid_data, test_data, int(config["n_bins"] or 10))
