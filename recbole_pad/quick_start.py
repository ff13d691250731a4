"""The whole run on one screen: data, model, phases, evaluation, result file. For PAD and for every RecBole model."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole.model
import torch
import torch.multiprocessing as multiprocessing
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import objective_function as _recbole_objective
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

import recbole_pad
from recbole_pad import checkpoint
from recbole_pad.checkpoint import RunFolder
from recbole_pad.errors import InputError
from recbole_pad.evaluation.evaluate import ItemGroups, evaluate_split
from recbole_pad.phase_trainers import PhaseRecord, peak_memory_mb
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
    """As RecBole's `quick_start.run`: one process, or several that this module spawns.

    RecBole's own `run` spawns processes that never import this plugin; ours do.

    Returns:
        What `run_recbole` returns (of the first process).

    Raises:
        InputError: as `run_recbole`, and if there is not a GPU for each process.
    """
    if nproc == 1 and world_size <= 0:
        return run_recbole(model, dataset, config_file_list, config_dict, saved)
    _check_processes(nproc, model, dataset, config_file_list, config_dict)
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    processes = {"world_size": world_size if world_size > 0 else nproc, "nproc": nproc}
    settings = {**(config_dict or {}), **processes, "ip": ip, "port": port, "offset": group_offset}
    kwargs = {"config_dict": settings, "queue": queue, "saved": saved}
    multiprocessing.spawn(  # type: ignore[attr-defined]
        run_recboles, args=(model, dataset, config_file_list, kwargs), nprocs=nproc, join=True
    )
    return None if queue.empty() else queue.get()


def _check_processes(
    nproc: int, model: str, dataset: str, files: list[str] | None, settings: dict[str, Any] | None
) -> None:
    """Refuse here what would fail in each spawned process by an AssertionError or an error of NCCL."""
    n_gpus = torch.cuda.device_count()
    if n_gpus < nproc or not torch.distributed.is_nccl_available():
        raise InputError(
            f"nproc: {nproc} processes need {nproc} GPUs, RecBole's distributed training runs on CUDA with NCCL "
            f"only; there are {n_gpus} usable ones here: leave nproc at 1"
        )
    check_model(model)
    config = _config(model, dataset, files, settings)
    check_dataset(config)
    if len(config["gpu_id"].split(",")) < nproc:
        every = ",".join(map(str, range(nproc)))
        raise InputError(f"gpu_id: {config['gpu_id']!r} names too few GPUs for nproc {nproc}; set --gpu_id={every}")
    for folder in (f"log/{model}", config["checkpoint_dir"]):  # RecBole fails where two processes make one at once
        Path(folder).mkdir(parents=True, exist_ok=True)


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
) -> dict[str, Any]:
    """Train and evaluate a model, PAD or any of RecBole's, and write ``result.json`` into the run's folder.

    Args:
        model: a model name.
        dataset: a dataset name; ``<data_path>/<dataset>/<dataset>.inter`` must exist (ml-100k comes with RecBole).
        config_file_list: yaml files; later ones win.
        config_dict: settings that win over the files. Key `protocol` (``pad`` by default here, ``recbole``) chooses
            the evaluation settings of all sequential models alike.
        saved: write checkpoints and the result.
        queue: where a spawned process puts the result.

    Returns:
        RecBole's keys (``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``), plus
        ``run_folder`` (None with ``saved=False``) and ``report``, the content of result.json.

    Raises:
        InputError: for an unknown model, dataset or setting.
    """
    check_model(model)
    config = _config(model, dataset, config_file_list, config_dict)
    check_dataset(config)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    logger.info(config)

    whole = create_dataset(config)
    logger.info(whole)
    train_data, valid_data, test_data = data_preparation(config, whole)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    network = get_model(model)(config, train_data._dataset).to(config["device"])
    logger.info(network)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    started = time.monotonic()
    folder: RunFolder | None = None
    if saved and not isinstance(trainer, PADTrainer):
        folder = checkpoint.from_first_process(config, lambda: RunFolder.create(config, f"seed{config['seed']}"))
        trainer.saved_model_file = str(folder.model_file)
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=config["show_progress"]
    )
    record = _stock_record(trainer, len(train_data), time.monotonic() - started)
    checkpoint.wait_for_all(config)
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=config["show_progress"])

    report = {
        **_header(config, network),
        "best_valid_result": _plain(best_valid_result),
        "test_result": _plain(test_result),
        "phases": _phase_reports(trainer, record, whole, valid_data, test_data),
        "total_seconds": time.monotonic() - started,
        "versions": _versions(),
    }
    folder = trainer.folder if isinstance(trainer, PADTrainer) else folder
    if folder is not None and config["local_rank"] == 0:
        checkpoint.write_json(folder.result_file, report)
        given = {"model": model, "dataset": dataset, **config.external_config_dict}  # can be passed as --config_files
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
    if queue is not None and config["local_rank"] == 0:
        queue.put(result)
    return result


def _config(model: str, dataset: str, config_file_list: list[str] | None, config_dict: dict[str, Any] | None) -> Config:
    for file in config_file_list or []:
        if not Path(file).is_file():
            raise InputError(f"config_files: {file} does not exist")
    settings = {"protocol": "pad", **_protocol_of_files(config_file_list), **(config_dict or {})}
    try:
        return Config(model=model, dataset=dataset, config_file_list=config_file_list, config_dict=settings)
    except InputError:
        raise
    except (ValueError, SyntaxError) as error:  # settings that do not go together, or come twice
        raise InputError(str(error)) from error


def _protocol_of_files(config_file_list: list[str] | None) -> dict[str, Any]:
    """RecBole lets a dict win over files; our default of `protocol` must not."""
    for file in reversed(config_file_list or []):
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        if "protocol" in content:
            return {"protocol": content["protocol"]}
    return {}


def model_names() -> list[str]:
    """Names of RecBole's models (and PAD), from the class files of its model packages."""
    names = {"PAD"}
    for folder in Path(recbole.model.__file__).parent.glob("*_recommender"):
        text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "__init__.py")
        names |= {line[6:].split("(")[0].strip() for line in text.splitlines() if line.startswith("class ")}
    lower = {path.stem for path in Path(recbole.model.__file__).parent.glob("*_recommender/*.py")} | {"pad"}
    return sorted(name for name in names if name.lower() in lower)


def check_model(model: str) -> None:
    """Refuse an unknown model name.

    Raises:
        InputError: naming the nearest known model.
    """
    known = model_names()
    if model not in known:
        raise InputError(
            f"model: {model!r} is not a model of RecBole or PAD{nearest(model, known)}; known: {', '.join(known)}"
        )


def check_dataset(config: Any) -> None:
    """Refuse a dataset that is not there, unless RecBole knows where to download it.

    Raises:
        InputError: naming the file that is missing, and the datasets that are there.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    files = [f"{name}.{part}.inter" for part in config["benchmark_filename"] or []] or [f"{name}.inter"]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
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


def _phase_reports(trainer: Any, record: PhaseRecord, whole: Any, valid_data: Any, test_data: Any) -> dict[str, Any]:
    """Each phase's own model on both held-out splits; a stock model has one phase, called ``train``."""
    config = trainer.config
    split, mode = config["eval_args"]["split"], config["eval_args"]["mode"]
    groupable = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and split.get("LS") == "valid_and_test"
    groups = None
    if groupable and set(mode.values()) == {"full"}:
        groups = ItemGroups.of(whole, valid_data, test_data, int(config["n_bins"] or 10))
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
            "reused_from": kept.reused_from,
        }
        if groups is not None:
            for name, loader in (("valid", valid_data), ("test", test_data)):
                reports[phase][name] = evaluate_split(trainer, loader, groups, split, name)
    return reports


def _stock_record(trainer: Any, n_batches: int, seconds: float) -> PhaseRecord:
    """What RecBole's trainer remembers of its training, as a phase's record."""
    losses = list(getattr(trainer, "train_loss_dict", {}).values())
    record = PhaseRecord(
        epochs=len(losses),
        train_loss=[float(loss) / max(n_batches, 1) for loss in losses],
        seconds=seconds,
        peak_memory_mb=peak_memory_mb(trainer.config["device"]),
    )
    if losses and trainer.best_valid_result:
        n_evaluations = len(losses) // trainer.eval_step
        record.best_epoch = (n_evaluations - trainer.cur_step) * trainer.eval_step - 1
        record.best_valid_score = float(trainer.best_valid_score)
        record.best_valid_result = _plain(trainer.best_valid_result) or {}
    return record


def _header(config: Any, network: Any) -> dict[str, Any]:
    text = network.text_fingerprint if hasattr(network, "text_fingerprint") else None
    return {
        "format": RESULT_FORMAT,
        "model": config["model"],
        "backbone": config["backbone"] if config["model"] == "PAD" else None,
        "dataset": config["dataset"],
        "seed": config["seed"],
        "protocol": {
            "split": config["eval_args"]["split"],
            "ranking": config["eval_args"]["mode"],
            "mask_history": bool(config["mask_history"]),
            "valid_metric": config["valid_metric"],
            "max_history": config["MAX_ITEM_LIST_LENGTH"],
            "positions": config["positions"] if config["model"] == "PAD" else None,
        },
        "text_vectors": text,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "command": sys.argv,
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
    text = yaml.safe_dump({key: _yaml_value(value) for key, value in settings.items()})
    checkpoint.write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _yaml_value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_yaml_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _yaml_value(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
