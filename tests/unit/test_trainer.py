"""The phase trainers used alone, and PADTrainer; resuming and caching are in integration/test_resume.py."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import recbole.trainer.trainer
import torch

from recbole_pad import checkpoint
from recbole_pad.checkpoint import RunFolder
from recbole_pad.errors import InputError
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS, AlignTrainer, FinetuneTrainer, PretrainTrainer
from recbole_pad.quick_start import run_recbole
from recbole_pad.trainer import PADTrainer

PHASE_NAMES = ("pretrain", "align", "finetune")
OWN_PARTS = {
    "pretrain": ["experts.rec."],
    "align": ["experts.align."],
    "finetune": ["experts.rec.", "experts.align.", "experts.llm.", "gate.", "repeats."],
}
# The gate learned with the experts, from the loss of the mixture, which cannot contain the Markov expert.
LEARNED_GATE = {"gate_fit": "train", "expert_loss": "joint", "experts": ["rec", "align", "llm", "match"]}

Build = Callable[..., SimpleNamespace]


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def force_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """The validation scores that RecBole's loop sees, epoch by epoch; the metrics stay as they are."""
    left = iter(scores)
    monkeypatch.setattr(recbole.trainer.trainer, "calculate_valid_score", lambda result, metric: next(left))


def files_below(folder: Path) -> set[str]:
    """Files, without RecBole's logs."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] not in ("log", "log_tensorboard")}


# --- one phase alone ------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_phase_and_names_it(build: Build):
    parts = build(**{"pretrain.learning_rate": 0.25, "epochs": 3})
    trainer = PretrainTrainer(parts.config, parts.model)
    loss = parts.model.calculate_loss
    parts.model.calculate_loss = lambda rows: loss(rows) * (math.nan if trainer.record.epochs == 1 else 1)
    with pytest.raises(InputError, match=r"phase pretrain, epoch 1: the training loss is NaN.* than 0.25, or"):
        trainer.fit(parts.train, parts.valid)


@pytest.mark.parametrize("phase", PHASE_NAMES)
def test_a_phase_moves_its_own_parameters_and_no_others(phase: str, build: Build):
    run = build()
    before = copy_of(run.model)
    PHASE_TRAINERS[phase](run.config, run.model).fit(run.train, run.valid)
    changed = moved(before, run.model.state_dict())
    assert {name for name in changed if not name.startswith(tuple(OWN_PARTS[phase]))} == set()
    for part in OWN_PARTS[phase]:
        assert any(name.startswith(part) for name in changed), f"nothing of {part} was trained"


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("phase", PHASE_NAMES)
def test_the_best_weights_are_in_the_model_after_fit(
    phase: str, in_folder: bool, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    run = build(epochs=4, stopping_step=9, **LEARNED_GATE)
    force_scores(monkeypatch, [0.1, 0.5, 0.3, 0.2])
    epochs: list[dict[str, torch.Tensor]] = []
    trainer = PHASE_TRAINERS[phase](run.config, run.model, RunFolder(tmp_path / "run") if in_folder else None)
    score, result = trainer.fit(
        run.train, run.valid, callback_fn=lambda epoch, score: epochs.append(copy_of(run.model))
    )
    assert len(epochs) == 4
    assert not equal(epochs[1], epochs[3])
    assert equal(copy_of(run.model), epochs[1])
    assert (trainer.record.best_epoch, trainer.record.epochs, score) == (1, 4, 0.5)
    assert result == dict(trainer.evaluate(run.valid))


def test_of_equal_scores_the_later_epoch_is_kept(build: Build, monkeypatch: pytest.MonkeyPatch):
    """RecBole's rule: a score that is as good counts as better."""
    run = build(epochs=3, stopping_step=9)
    force_scores(monkeypatch, [0.5, 0.5, 0.1])
    trainer = PretrainTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    assert trainer.record.best_epoch == 1


def test_a_phase_stops_after_more_than_stopping_step_worse_epochs(build: Build, monkeypatch: pytest.MonkeyPatch):
    run = build(**{"epochs": 9, "stopping_step": 4, "align.stopping_step": 2})
    force_scores(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1])
    trainer = AlignTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    assert trainer.record.epochs == 4


def test_without_validation_data_the_last_epoch_is_kept(build: Build):
    run, other = build(epochs=3), build(epochs=3)
    trainer = PretrainTrainer(run.config, run.model)
    score, _ = trainer.fit(run.train, None)
    assert (trainer.record.best_epoch, score) == (2, None)
    last: list[dict[str, torch.Tensor]] = []
    PretrainTrainer(other.config, other.model).fit(
        other.train, other.valid, callback_fn=lambda *_: last.append(copy_of(other.model))
    )
    assert equal(copy_of(run.model), last[2])


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_phase_of_no_epochs_keeps_the_weights_it_starts_from(in_folder: bool, build: Build, tmp_path: Path):
    run = build(**{"align.epochs": 0})
    before = copy_of(run.model)
    trainer = AlignTrainer(run.config, run.model, RunFolder(tmp_path / "run") if in_folder else None)
    trainer.fit(run.train, run.valid)
    assert equal(copy_of(run.model), before)
    assert (trainer.record.best_epoch, trainer.record.epochs, trainer.record.train_loss) == (-1, 0, [])


def test_a_phase_alone_repeats_bit_by_bit(build: Build):
    runs = [build(), build()]
    for run in runs:
        torch.rand(5)  # what was drawn before does not matter
        AlignTrainer(run.config, run.model).fit(run.train, run.valid)
    assert equal(copy_of(runs[0].model), copy_of(runs[1].model))


def test_the_recorded_loss_is_the_mean_over_the_batches(build: Build, monkeypatch: pytest.MonkeyPatch):
    run = build(epochs=1)
    seen: list[float] = []
    original = PAD.calculate_loss

    def spy(self: PAD, interaction: Any) -> Any:
        loss = original(self, interaction)
        seen.append(float(sum(loss)) if isinstance(loss, tuple) else float(loss))
        return loss

    monkeypatch.setattr(PAD, "calculate_loss", spy)
    trainer = AlignTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    assert len(seen) == len(run.train) > 1
    assert trainer.record.train_loss == [pytest.approx(sum(seen) / len(seen))]


def test_every_epoch_has_an_order_of_its_own(build: Build, monkeypatch: pytest.MonkeyPatch):
    run = build(epochs=2)
    users: list[int] = []
    original = PAD.calculate_loss

    def spy(self: PAD, interaction: Any) -> Any:
        users.extend(interaction["user_id"].tolist())
        return original(self, interaction)

    monkeypatch.setattr(PAD, "calculate_loss", spy)
    PretrainTrainer(run.config, run.model).fit(run.train, run.valid)
    n_rows = len(run.train._dataset)
    first, second = users[:n_rows], users[n_rows:]
    assert sorted(first) == sorted(second) == sorted(run.train._dataset.inter_feat["user_id"].tolist())
    assert first != second


# --- optimizer and phase settings -----------------------------------------------------------------


def test_the_gate_has_its_own_rate_and_no_weight_decay(build: Build):
    run = build(
        **{
            "weight_decay": 0.3,
            "gate_learning_rate": 0.7,
            "learning_rate": 0.1,
            "finetune.learning_rate": 0.2,
        }
    )
    trainer = FinetuneTrainer(run.config, run.model)
    rest, gate = trainer.optimizer.param_groups
    assert (gate["lr"], gate["weight_decay"]) == (0.7, 0.0)
    assert (rest["lr"], rest["weight_decay"]) == (0.2, 0.3)
    assert {id(p) for p in gate["params"]} == {id(p) for p in run.model.gate.parameters()}
    assert {id(p) for p in rest["params"]} == {
        id(p) for expert in run.model.experts.values() for p in expert.parameters()
    }
    assert len(gate["params"]) + len(rest["params"]) == len(list(run.model.parameters()))


@pytest.mark.parametrize(("phase", "expert"), [("pretrain", "rec"), ("align", "align")])
def test_early_phases_optimize_their_expert_alone(phase: str, expert: str, build: Build):
    run = build(**{"weight_decay": 0.3, "align.weight_decay": 0.4})
    (group,) = PHASE_TRAINERS[phase](run.config, run.model).optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in run.model.experts[expert].parameters()}
    assert group["weight_decay"] == (0.4 if phase == "align" else 0.3)


@pytest.mark.parametrize(
    ("learner", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_learner_of_a_phase_is_recboles(learner: str, cls: type, build: Build):
    run = build(**{"align.learner": learner})
    assert type(AlignTrainer(run.config, run.model).optimizer) is cls


def test_settings_of_one_phase_do_not_leak_into_the_others(build: Build, monkeypatch: pytest.MonkeyPatch):
    run = build(**{"epochs": 1, "align.epochs": 2, "align.train_batch_size": 5, "train_batch_size": 12})
    n_rows = len(run.train._dataset)
    steps: dict[str, list[int]] = {name: [] for name in PHASE_NAMES}
    original = PAD.calculate_loss

    def spy(self: PAD, interaction: Any) -> Any:
        steps[self.phase].append(len(interaction))
        return original(self, interaction)

    monkeypatch.setattr(PAD, "calculate_loss", spy)
    PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=False)
    assert {name: (len(rows), max(rows), sum(rows)) for name, rows in steps.items()} == {
        "pretrain": (math.ceil(n_rows / 12), 12, n_rows),
        "align": (2 * math.ceil(n_rows / 5), 5, 2 * n_rows),
        "finetune": (math.ceil(n_rows / 12), 12, n_rows),
    }


def test_tensorboard_tags_name_the_phase(build: Build, monkeypatch: pytest.MonkeyPatch):
    tags: list[str] = []
    writer = SimpleNamespace(
        add_scalar=lambda tag, value, step: tags.append(tag),
        add_hparams=lambda settings, metrics, run_name: tags.append(f"{run_name}/hparams"),
    )
    monkeypatch.setattr(recbole.trainer.trainer, "get_tensorboard", lambda logger: writer)
    run = build(epochs=1)
    PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=False)
    for phase in PHASE_NAMES:
        losses = ("Loss/Train0", "Loss/Train1") if phase == "align" else ("Loss/Train",)
        assert {f"{phase}/{tag}" for tag in (*losses, "Vaild_score", "hparams")} <= set(tags)
    assert {tag.split("/")[0] for tag in tags} == set(PHASE_NAMES)


class FakeWandb(ModuleType):
    """Weights & Biases without a network: what RecBole's logger calls, recorded."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run: Any = None
        self.projects: list[str] = []
        self.axes: dict[str, str] = {}
        self.logged: list[dict[str, Any]] = []

    def init(self, project: str, config: Any) -> None:
        self.projects.append(project)
        self.run = SimpleNamespace(summary={})

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, metrics: dict[str, Any], commit: bool) -> None:
        self.logged.append(metrics)


def test_wandb_tells_the_phases_apart(build: Build, monkeypatch: pytest.MonkeyPatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = build(epochs=2, stopping_step=9, log_wandb=True, wandb_project="shop")
    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid, saved=False)
    result = trainer.evaluate(run.test, load_best_model=False)
    assert wandb.projects == ["shop"]  # one W&B run for all phases
    for phase in PHASE_NAMES:
        of_phase = [entry for entry in wandb.logged if any(name.startswith(f"{phase}/") for name in entry)]
        losses = ("train_loss0", "train_loss1") if phase == "align" else ("train_loss",)
        train = [entry for entry in of_phase if {f"{phase}/train/{loss}" for loss in losses} <= set(entry)]
        valid = [entry for entry in of_phase if f"{phase}/valid/ndcg@10" in entry]
        assert len(train) + len(valid) == len(of_phase)
        for kind, entries in (("train", train), ("valid", valid)):
            axis = wandb.axes[f"{phase}/{kind}/*"]
            assert [entry[axis] for entry in entries] == [0, 1]
            assert all(name.startswith((f"{phase}/{kind}/", axis)) for entry in entries for name in entry)
        curve = [score for _, score in trainer.records[phase].valid_curve]
        assert [entry[f"{phase}/valid/ndcg@10"] for entry in valid] == pytest.approx(curve)
        assert f"{phase}/eval/ndcg@10" in wandb.run.summary
    assert wandb.run.summary["eval/ndcg@10"] == result["ndcg@10"]  # the test result, of the whole run


def test_without_wandb_nothing_is_imported_of_it(build: Build, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    run = build(epochs=1, phases=["pretrain"])
    PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=False)


# --- PADTrainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [True, False])
def test_a_gate_fitted_on_validation_data_leaves_the_experts_as_they_are(saved: bool, build: Build):
    ends = {}
    for fit in ("train", "valid"):
        run = build(**{**LEARNED_GATE, "gate_fit": fit}, gate_learning_rate=0.0)
        trainer = PADTrainer(run.config, run.model)
        trainer.fit(run.train, run.valid, saved=saved)
        trainer.enter_phase("finetune")
        ends[fit] = copy_of(run.model)
    changed = moved(ends["train"], ends["valid"])
    assert changed
    assert all(name.startswith(("gate.", "repeats.")) for name in changed)


def test_an_expert_that_learns_alone_is_validated_by_itself_and_the_phase_by_the_mixture(build: Build):
    """Its curve is that of a run without other experts; the phase's result is RecBole's evaluation of all of them."""
    curves, results = [], []
    for changes in ({"gate_fit": "none"}, {"experts": ["llm"]}):
        run = build(epochs=3, stopping_step=9, **changes)
        run.model.start_experts({"rec", "align"})  # as after the earlier phases: they learn no more
        trainer = FinetuneTrainer(run.config, run.model)
        _, result = trainer.fit(run.train, run.valid)
        curves.append(trainer.record.valid_curve)
        results.append(result)
        assert run.model.scored_alone is None
        assert result == dict(trainer.evaluate(run.valid))
        assert trainer.record.best_valid_result == result
    assert curves[0] == curves[1]
    assert results[0] != results[1]


def test_sampled_evaluation_is_refused_before_training_where_a_gate_is_to_be_fitted(build: Build):
    def fit(**changes: Any) -> Any:
        sampled = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni10"}
        run = build(eval_args=sampled, mask_history=False, **changes)
        return PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=False)

    with pytest.raises(
        InputError, match=r"gate_fit: valid ranks .* eval_args\.mode is uni10; set mode: full, or gate_fit"
    ):
        fit()
    score, result = fit(gate_fit="none", epochs=1)
    assert score == result["ndcg@10"]


@pytest.mark.parametrize("changes", [{"retrain_experts": True}, LEARNED_GATE], ids=["several learn", "joint loss"])
def test_where_no_expert_learns_alone_the_mixture_is_validated(changes: dict[str, Any], build: Build):
    run = build(epochs=1, **{**changes, "gate_fit": "none"})
    run.model.start_experts({"rec", "align"})
    assert run.model.learns_alone() is None
    trainer = FinetuneTrainer(run.config, run.model)
    _, result = trainer.fit(run.train, run.valid)
    assert result is not None
    assert trainer.record.valid_curve == [[0, result["ndcg@10"]]]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"gate_fit": "none"}, False),
        ({"experts": ["rec"]}, False),
        ({**LEARNED_GATE, "gate_fit": "train"}, False),
    ],
)
def test_a_gate_that_nothing_can_be_fitted_on_is_said_aloud(
    changes: dict[str, Any], warned: bool, build: Build, caplog: pytest.LogCaptureFixture
):
    run = build(**changes, epochs=1)
    caplog.set_level("WARNING")
    gate = copy_of(run.model.gate)
    FinetuneTrainer(run.config, run.model).fit(run.train, None)
    found = [record.getMessage() for record in caplog.records if "gate_fit" in record.getMessage()]
    assert len(found) == warned
    if warned:
        assert equal(copy_of(run.model.gate), gate)
        assert "gate_fit: valid, but there are no validation rows" in found[0]
        assert "eval_args.split" in found[0]


@pytest.mark.parametrize("saved", [True, False])
def test_each_phase_can_be_entered_again_with_its_best_weights(saved: bool, build: Build):
    run = build()
    trainer = PADTrainer(run.config, run.model)
    _, result = trainer.fit(run.train, run.valid, saved=saved)
    assert list(trainer.records) == list(PHASE_NAMES)
    assert result == trainer.records["finetune"].best_valid_result
    found = {}
    for phase in ("align", "finetune", "pretrain"):
        trainer.enter_phase(phase)
        found[phase] = dict(trainer.evaluate(run.valid, load_best_model=False))
        assert found[phase] == trainer.records[phase].best_valid_result
    assert len({tuple(values.items()) for values in found.values()}) == 3, "the phases cannot be told apart"


def test_the_best_weights_pass_on_to_the_next_phase(build: Build, monkeypatch: pytest.MonkeyPatch):
    """Pre-training is best at epoch 0 of 3; alignment starts from those ID vectors and that encoder."""
    run = build(epochs=3, stopping_step=9, align_start="pretrain", **LEARNED_GATE)
    force_scores(monkeypatch, [0.5, 0.2, 0.1] * 3)
    best: dict[str, torch.Tensor] = {}

    def after_epoch(epoch: int, score: float) -> None:
        if run.model.phase == "pretrain" and epoch == 0:
            best.update(copy_of(run.model.experts["rec"]))

    started: list[dict[str, torch.Tensor]] = []
    original = AlignTrainer.fit

    def fit(self: AlignTrainer, *args: Any, **kwargs: Any) -> Any:
        started.append(copy_of(self.model.experts["align"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AlignTrainer, "fit", fit)
    PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=False, callback_fn=after_epoch)
    (start,) = started
    assert torch.equal(start["items.ids.weight"], best["items.weight"])
    encoder = [name for name in best if name.startswith("backbone.")]
    assert encoder
    assert all(torch.equal(start[name], best[name]) for name in encoder)


def test_the_test_result_is_that_of_the_last_phases_best_weights(build: Build, monkeypatch: pytest.MonkeyPatch):
    run = build(epochs=3, stopping_step=9, **LEARNED_GATE)
    force_scores(monkeypatch, [0.5, 0.2, 0.1] * 3)
    results: list[dict[str, float]] = []

    def after_epoch(epoch: int, score: float) -> None:
        if run.model.phase == "finetune" and epoch == 0:
            results.append(dict(PADTrainer(run.config, run.model).evaluate(run.test, load_best_model=False)))

    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid, callback_fn=after_epoch)
    for parameter in run.model.parameters():
        parameter.data.zero_()
    assert dict(trainer.evaluate(run.test, load_best_model=True)) == results[0]


def test_saved_false_writes_nothing(build: Build, tmp_path: Path, data_path: Path):
    before = files_below(tmp_path), files_below(data_path)
    run = build(text_vectors_dir=str(tmp_path / "log" / "vectors"))
    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid, saved=False)
    trainer.evaluate(run.test, load_best_model=False)
    assert trainer.folder is None
    assert (files_below(tmp_path), files_below(data_path)) == before


def test_saved_true_writes_the_phases_and_the_model_into_one_folder(build: Build, tmp_path: Path):
    run = build(text_vectors_dir=str(tmp_path / "log" / "vectors"))
    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    folder = trainer.folder.path  # relative to the present folder, as checkpoint_dir is
    assert files_below(tmp_path) == {
        str(folder / name) for name in ("pretrain.pth", "align.pth", "finetune.pth", "model.pth")
    }
    assert folder.parent == Path(run.config["checkpoint_dir"])


def test_a_dataset_without_texts_is_trained_by_the_experts_that_read_none(
    settings: Callable[..., dict[str, Any]], data_path: Path, tmp_path: Path
):
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    shutil.copy(data_path / "tiny" / "tiny.inter", tmp_path / "data" / "tiny")
    chosen = settings(phases=["pretrain", "finetune"], experts=["rec", "markov"])
    results = [
        run_recbole(model="PAD", dataset="tiny", config_dict={**chosen, "data_path": str(place)})["test_result"]
        for place in (tmp_path / "data", data_path)  # without and with texts, which nothing reads
    ]
    assert results[0] == results[1]


def test_saving_changes_no_number(build: Build):
    runs = {saved: build() for saved in (True, False)}
    results = {
        saved: PADTrainer(run.config, run.model).fit(run.train, run.valid, saved=saved) for saved, run in runs.items()
    }
    assert results[True] == results[False]
    assert equal(copy_of(runs[True].model), copy_of(runs[False].model))


def test_phases_may_stop_early(build: Build):
    run = build(phases=["pretrain"])
    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid, saved=False)
    assert list(trainer.records) == ["pretrain"]
    assert list(run.model.experts) == ["rec"]


@pytest.mark.parametrize("seeds", [(7, 7), (7, 8)])
def test_a_run_repeats_with_its_seed_and_differs_with_another(seeds: tuple[int, int], settings: Callable[..., Any]):
    states = []
    for seed in seeds:
        result = run_recbole("PAD", "tiny", config_dict=settings(seed=seed, epochs=1, loss="bce"))
        files = [Path(result["run_folder"]) / f"{phase}.pth" for phase in PHASE_NAMES]
        states.append([checkpoint.load(file)["modules"] for file in files])
    same = [
        torch.equal(value, states[1][number][module][name])
        for number, modules in enumerate(states[0])
        for module, state in modules.items()
        for name, value in state.items()
        if value.is_floating_point() and value.numel() > 16  # biases and norms of one seed start as another's
    ]
    assert len(same) > 20
    assert all(same) if seeds[0] == seeds[1] else not any(same)


def test_starting_from_a_pretrained_checkpoint_gives_the_numbers_of_the_whole_run(build: Build):
    whole, first, rest = build(), build(phases=["pretrain"]), None
    PADTrainer(whole.config, whole.model).fit(whole.train, whole.valid)
    trainer = PADTrainer(first.config, first.model)
    trainer.fit(first.train, first.valid)
    rest = build(phases=["align", "finetune"], init_checkpoint=str(trainer.folder.phase_file("pretrain")))
    PADTrainer(rest.config, rest.model).fit(rest.train, rest.valid)
    assert equal(copy_of(rest.model), copy_of(whole.model))


def test_an_initial_checkpoint_without_a_usable_part_is_refused(build: Build):
    first = build(phases=["align"])
    trainer = PADTrainer(first.config, first.model)
    trainer.fit(first.train, first.valid)
    file = trainer.folder.phase_file("align")
    other = build(phases=["pretrain"], init_checkpoint=str(file))
    with pytest.raises(InputError, match=r"experts\.align") as info:
        PADTrainer(other.config, other.model).fit(other.train, other.valid)
    assert str(file) in str(info.value)


def test_an_initial_checkpoint_of_other_sizes_is_refused(build: Build):
    first = build(phases=["pretrain"])
    trainer = PADTrainer(first.config, first.model)
    trainer.fit(first.train, first.valid)
    file = trainer.folder.phase_file("pretrain")
    other = build(hidden_size=8, init_checkpoint=str(file))
    with pytest.raises(InputError, match="does not fit this model") as info:
        PADTrainer(other.config, other.model).fit(other.train, other.valid)
    assert str(file) in str(info.value)


def test_recboles_resume_checkpoint_continues_a_phase_where_its_last_epoch_began(build: Build, tmp_path: Path):
    whole, cut = build(epochs=3, stopping_step=9), build(epochs=3, stopping_step=9)
    PretrainTrainer(whole.config, whole.model, RunFolder(tmp_path / "whole")).fit(whole.train, whole.valid)
    folder = RunFolder(tmp_path / "cut")

    def stop(epoch: int, score: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PretrainTrainer(cut.config, cut.model, folder).fit(cut.train, cut.valid, callback_fn=stop)
    again = build(epochs=3, stopping_step=9)
    trainer = PretrainTrainer(again.config, again.model, folder)
    trainer.resume_checkpoint(str(folder.last_file))
    assert trainer.start_epoch == 1
    trainer.fit(again.train, again.valid)
    assert equal(copy_of(again.model), copy_of(whole.model))
    assert trainer.record.epochs == 3


@pytest.mark.parametrize("name", ["", "last.pth", "pretrain.pth"])
def test_recboles_resume_checkpoint_continues_the_run_of_a_file_or_folder(name: str, build: Build):
    def stop(epoch: int, score: float) -> None:
        if cut.model.phase == "align":
            raise KeyboardInterrupt

    whole, cut, again = build(), build(), build()
    PADTrainer(whole.config, whole.model).fit(whole.train, whole.valid)
    first = PADTrainer(cut.config, cut.model)
    with pytest.raises(KeyboardInterrupt):
        first.fit(cut.train, cut.valid, callback_fn=stop)
    trainer = PADTrainer(again.config, again.model)
    trainer.resume_checkpoint(first.folder.path / name)
    trainer.fit(again.train, again.valid)
    assert trainer.folder.path == first.folder.path
    assert trainer.records["pretrain"].reused_from == str(first.folder.phase_file("pretrain"))
    assert equal(copy_of(again.model), copy_of(whole.model))


def test_a_folder_to_resume_that_is_not_there_is_refused(build: Build):
    run = build(resume="saved/nothing-here")
    with pytest.raises(InputError, match="saved/nothing-here is not a folder"):
        PADTrainer(run.config, run.model).fit(run.train, run.valid)


def test_the_high_water_mark_is_that_of_this_process(build: Build):
    """getrusage counts kilobytes on Linux; /proc knows the same number."""
    if sys.platform != "linux":
        pytest.skip("/proc/self/status is Linux's")
    run = build(epochs=1)
    trainer = PretrainTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    status = Path("/proc/self/status").read_text()
    (high_water,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    assert trainer.record.peak_memory_mb == pytest.approx(high_water * 1024 / 1e6, rel=0.02)
