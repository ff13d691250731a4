"""Our files of settings laid over RecBole's config, and keys that nobody reads."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import ModelType

from recbole_pad.backbone_classes import backbone_spec, settings_file
from recbole_pad.config import name_list
from recbole_pad.errors import InputError
from recbole_pad.property_files import (
    KEYS_OF_PHASES,
    SELECTED_FEATURES,
    model_settings,
    own_backbone_settings,
    properties,
    property_names,
    unread_keys,
)
from recbole_pad.registry import nearest, pick

PROGRAMS = ("run_recbole", "recbole-pad", "__main__.py")
_RUN_KEYS = (  # keys that RecBole or its commands read but give no default
    "model dataset config_files nproc world_size ip port group_offset offset local_rank wandb_project single_spec "
    "additional_feat_suffix numerical_features discretization url benchmark_filename protocol resume embedding_size"
).split()


def add_plugin_settings(config: Any, model: str, model_class: Any, dataset: str) -> None:
    """Lay our property files over RecBole's defaults, then refuse keys that nobody reads.

    Order, later wins: RecBole's files, that of the backbone, `protocol/<protocol>.yaml`, `model/PAD.yaml`, the bases of
    the model, `model/<model>.yaml`, the files of an own backbone, `dataset/<dataset>.yaml`; the user's files, dict and
    command line win over all of them. PAD's keys stand below those of our other models, which share its dataset. For a
    model that is not ours nothing changes unless the key `protocol` is set.

    Raises:
        InputError: for an unknown backbone, protocol or key.
    """
    internal, external = config.internal_config_dict, config.external_config_dict
    ours = model_settings(model)
    protocol = external.get("protocol", "pad" if ours else None)
    if protocol is None and _ranks_all_items(internal):
        logging.getLogger().warning(
            "%s runs under RecBole's own protocol (history not masked, best epoch by %s), PAD under another one: to "
            "compare them, set protocol: pad for both",
            model,
            external.get("valid_metric", internal["valid_metric"]),
        )
    own: dict[str, Any] = {}
    if "backbone" in ours:
        backbone = external.get("backbone", ours["backbone"])
        backbone_spec(backbone)
        if (file := settings_file(backbone)) is not None:
            config._update_internal_config_dict(str(file))
        own = own_backbone_settings(backbone)
    if protocol and _ranks_all_items(internal):
        pick(dict.fromkeys(property_names("protocol")), protocol, "protocol")
        internal.update(properties("protocol", f"{protocol}.yaml"))
    if ours:
        internal.update(properties("model", "PAD.yaml"))
        internal.update(ours)
    internal.update(own)
    _let_plain_keys_win(internal, external)
    if protocol:
        has_features = SELECTED_FEATURES in internal
        internal.update(properties("dataset", f"{dataset}.yaml"))
        _load_named_columns(internal, external)
        if has_features:
            _load_selected_features(internal, external)
        else:
            internal.pop(SELECTED_FEATURES, None)
        _no_negatives_for_full_softmax(internal, external)
    _check_keys(config, model, ours)


def _let_plain_keys_win(internal: dict[str, Any], external: Mapping[str, Any]) -> None:
    """A user who sets `key` means all phases: our own default of `<phase>.key` must not stand in the way."""
    for name in [name for name in internal if "." in name and name.split(".", 1)[1] in external]:
        del internal[name]


def _ranks_all_items(internal: Mapping[str, Any]) -> bool:
    eval_args = internal.get("eval_args") or {}
    return internal["MODEL_TYPE"] == ModelType.SEQUENTIAL and eval_args.get("mode", "full") == "full"


def _load_named_columns(internal: dict[str, Any], external: Mapping[str, Any]) -> None:
    """RecBole's default for an unknown dataset loads users and items only, on which no sequential model can run."""
    columns = (internal.get("load_col") or {}).get("inter")
    if internal["MODEL_TYPE"] == ModelType.SEQUENTIAL and columns == ["user_id", "item_id"]:
        named = [external.get(key, internal[key]) for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        internal["load_col"] = {**internal["load_col"], "inter": named}


def _load_selected_features(internal: dict[str, Any], external: dict[str, Any]) -> None:
    """RecBole's models with item features (SASRecF, FDSA, ...) find the columns loaded on ml-100k only.

    Interactions of items without a line in `.item` stay, as for all other models.
    """
    item = external.get("ITEM_ID_FIELD", internal["ITEM_ID_FIELD"])
    if SELECTED_FEATURES in external:
        external[SELECTED_FEATURES] = name_list(external[SELECTED_FEATURES])
    features = external.get(SELECTED_FEATURES, internal[SELECTED_FEATURES])
    if features and internal.get("load_col") and "item" not in internal["load_col"]:
        internal["load_col"] = {**internal["load_col"], "item": [item, *features]}
    internal["filter_inter_by_user_or_item"] = False


def _no_negatives_for_full_softmax(internal: dict[str, Any], external: Mapping[str, Any]) -> None:
    """RecBole's sequential models default to full softmax AND to one sampled negative, and refuse that together."""
    loss = external.get("loss_type", internal.get("loss_type"))
    if internal["MODEL_TYPE"] == ModelType.SEQUENTIAL and loss == "CE":
        internal["train_neg_sample_args"] = None


def _check_keys(config: Any, model: str, ours: Mapping[str, Any]) -> None:
    known = {
        *config.internal_config_dict,
        *_RUN_KEYS,
        *(key for keys in config.parameters.values() for key in keys),
    }
    pad_keys = {*properties("model", "PAD.yaml"), *properties("protocol", "pad.yaml")}
    known |= KEYS_OF_PHASES if ours else pad_keys
    if "loss" in ours and "loss_type" in config.external_config_dict:
        raise InputError(
            f"loss_type: {model}'s loss is set by the key `loss` (ce, bce, sampled_softmax); remove loss_type"
        )
    if unread := sorted(unread_keys(model) & set(config.external_config_dict)):
        raise InputError(
            f"{', '.join(unread)}: PAD reads that, {model} does not; its keys: properties/model/{model}.yaml"
        )
    ours_on_command_line = Path(sys.argv[0]).name in PROGRAMS
    for key in config.external_config_dict:
        if key in known:
            continue
        near = nearest(key, sorted(known), cutoff=0.75)
        on_command_line = key in config.cmd_config_dict
        if (ours and (ours_on_command_line or not on_command_line)) or nearest(key, sorted(pad_keys), cutoff=0.85):
            described = f"properties/model/{model}.yaml" if ours else "properties/model/PAD.yaml"
            raise InputError(f"unknown config key {key!r}{near}; keys of {model if ours else 'PAD'}: {described}")
        logging.getLogger().warning("config key %r is not known to RecBole or PAD%s", key, near)
