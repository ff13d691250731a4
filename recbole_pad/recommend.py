"""A finished run of PAD at work: the items of the highest scores for every user, after all interactions there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_pad import __version__, checkpoint
from recbole_pad.checkpoint import RunFolder
from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.errors import InputError
from recbole_pad.evaluation.ranking import SCORE_MEMORY_MB, Items, top_k
from recbole_pad.phase_trainers import load_modules
from recbole_pad.preflight import checked_config
from recbole_pad.property_files import read_yaml
from recbole_pad.quick_start import data_and_model
from recbole_pad.registration import has_phases

_USERS = 1024  # scored at once


@dataclass(frozen=True)
class TrainedRun:
    """The model of a finished run and the data that it was trained on.

    Attributes:
        config: RecBole's config.
        dataset: the training split of `PADDataset`; its `histories` hold all interactions.
        model: PAD in its last phase, in evaluation mode.
    """

    config: Any
    dataset: Any
    model: Any

    @classmethod
    def load(cls, run_folder: Path, settings: dict[str, Any] | None = None) -> TrainedRun:
        """Load a run from the weights of its last phase; nothing is unpickled and nothing is trained.

        Args:
            run_folder: as `run_recbole` printed it.
            settings: over those of the run, such as data_path or gpu_id.

        Raises:
            InputError: if the folder holds no finished run of PAD, or its data, texts or settings are not those of now.
        """
        given = read_yaml(run_folder / "config.yaml", f"{run_folder}: is no folder of a finished run (no config.yaml)")
        if not isinstance(given, dict) or not has_phases(str(given.get("model"))):
            named = given.get("model") if isinstance(given, dict) else given
            raise InputError(f"{run_folder}: is a run of {named}; name a run of PAD")
        model, dataset = given.pop("model"), given.pop("dataset")
        config = checked_config(model, dataset, None, {**given, "resume": False, **(settings or {})})
        if config["cold_split"]:
            raise InputError(f"{run_folder}: has cold_split, which takes items out of histories; name a run without it")
        _, train_data, _, _, network = data_and_model(config)
        split = train_data._dataset
        phase = network.settings.phases[-1]
        file = RunFolder(run_folder).phase_file(phase)
        content = checkpoint.load(file, config["device"])
        if not content["finished"] or content["fingerprint"] != checkpoint.fingerprint(config, split, phase):
            raise InputError(
                f"{file}: is of other settings, data, texts or another version of recbole-pad than now "
                f"({__version__}), or not finished; its config.yaml names {config['data_path']} and "
                f"{config['text_vectors_dir']}: restore what was there, or train again"
            )
        network.phase = phase
        load_modules(network, content["modules"])
        return cls(config, split, network.eval())

    def user_ids(self, tokens: Collection[str] | None) -> np.ndarray:
        """Numbers of the users, ascending; None: all that have an interaction.

        Raises:
            InputError: for users without an interaction.
        """
        known, lengths = self.dataset.field2token_id[self.dataset.uid_field], self.dataset.histories.lengths
        if tokens is None:
            return np.flatnonzero(lengths)
        unknown = [token for token in tokens if not lengths[known.get(token, 0)]]  # number 0 is no user
        if unknown:
            raise InputError(
                f"users: {self.dataset.dataset_name} has no interaction of {', '.join(map(repr, unknown[:5]))}"
                f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}; name users of the .inter file"
            )
        return np.unique(np.array([known[token] for token in tokens], dtype=np.int64))

    @torch.no_grad()
    def top_items(self, users: np.ndarray, k: int, repeats: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of users, best first, after their newest interaction.

        Args:
            users: user numbers, shape (B,).
            k: length of the lists, >= 1.
            repeats: whether items of a user's own history may be in the list.

        Returns:
            (scores, item numbers), shape (B, k) both; score -inf and item 0 where fewer than k items are left.
        """
        model, histories, device = self.model, self.dataset.histories, self.config["device"]
        who = torch.from_numpy(users)
        item_seq, length = histories.newest_items(users, model.max_seq_length)
        batch = Interaction({model.USER_ID: who, model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: length}).to(device)
        scores, found = top_k(
            model.user_vectors(batch).float(),
            Items(self.dataset.item_num, lambda item_ids: model.item_vectors(item_ids).float()),
            k,
            None if repeats else tuple(part.to(device) for part in histories.pairs(who, 0)),
            float(self.config["score_memory_mb"] or SCORE_MEMORY_MB),
            model.pair_scores(batch),
        )
        return scores.cpu().numpy(), found.cpu().numpy()


def recommend(
    run_folder: Path,
    output: Path,
    k: int = 10,
    users: Collection[str] | None = None,
    repeats: bool = False,
) -> int:
    """Write lists of items for users of a finished run, as a table: user_id, rank, item_id, score, tab-separated.

    Args:
        run_folder: a run of PAD.
        output: the file; written whole or not at all.
        k: items for each user.
        users: as the `.inter` file names them; None: all.
        repeats: whether items that a user had before may come again.

    Returns:
        The number of lines, without the header: k for each user, or as many as items are left.

    Raises:
        InputError: of `TrainedRun.load`, for unknown users, k below 1, or a file that cannot be written.
    """
    if k < 1:
        raise InputError(f"k: {k} is not a whole number from 1")
    run = TrainedRun.load(run_folder)
    wanted = run.user_ids(users)
    n_lines = 0

    def write(path: Path) -> None:
        nonlocal n_lines
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{run.dataset.uid_field}\trank\t{run.dataset.iid_field}\tscore\n")
            for line in _lines(run, wanted, k, repeats):
                file.write(line)
                n_lines += 1

    write_whole(output, write)
    n_places = k * len(wanted)
    if n_lines < n_places:
        getLogger().warning("%d of %d places are empty: fewer items are left there", n_places - n_lines, n_places)
    return n_lines


def _lines(run: TrainedRun, users: np.ndarray, k: int, repeats: bool) -> Iterator[str]:
    user_of, item_of = (run.dataset.field2id_token[name] for name in (run.dataset.uid_field, run.dataset.iid_field))
    for start in range(0, len(users), _USERS):
        block = users[start : start + _USERS]
        scores, items = run.top_items(block, k, repeats)
        for user, own_scores, own_items in zip(block, scores, items, strict=True):
            for place, (score, item) in enumerate(zip(own_scores, own_items, strict=True), start=1):
                if item:
                    yield f"{user_of[user]}\t{place}\t{item_of[item]}\t{score:.6g}\n"
