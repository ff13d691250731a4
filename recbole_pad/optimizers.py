"""The optimizer of a phase: dense parameters as RecBole builds it, large ID tables row by row, stepped as one.

A step reads a few thousand items. With dense gradients each step would still write every row of an ID table, and of
the two tables of its Adam state. With ``sparse_updates`` the gradient names the rows of the step, and only they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_pad.config import PADConfig
from recbole_pad.errors import InputError

SPARSE_FROM = 100_000  # items; below, a dense step is about as fast, and its numbers are Adam's
_REMEDY = "set sparse_updates: auto or never"
_BETAS = (0.9, 0.999)  # decay rates of the two moments, those of torch


class RowAdam(Optimizer):
    """Lazy Adam: of a sparse gradient, only the rows that it names, their moments and weights, are changed.

    Where a step names all rows it is Adam (or AdamW) exactly; a row that is not named keeps its moments instead of
    decaying them, and is not moved by them. The bias correction counts the steps of the table, not of the row.

    Args:
        params: tables, shape (V, d) each; their gradients must be sparse.
        lr: learning rate.
        weight_decay: of the named rows only, in each step that names them.
        decoupled: decay the weights (AdamW) instead of adding the decay to the gradient (Adam).
        eps: added to the root of the second moment.

    Source: Kingma and Ba 2015; Loshchilov and Hutter 2019; lazy rows as in torch.optim.SparseAdam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "decoupled": decoupled, "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all tables that have a gradient.

        Raises:
            ValueError: if a gradient is dense.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)
        return loss

    def _update(self, table: Tensor, group: Mapping[str, Any]) -> None:
        if table.grad is None or not table.grad.is_sparse:
            raise ValueError("RowAdam needs a sparse gradient: look rows up with F.embedding(..., sparse=True)")
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        grad = table.grad.coalesce()
        rows, gradient = grad.indices()[0], grad.values()
        weight = table.index_select(0, rows)
        if group["decoupled"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        (beta1, beta2), step = _BETAS, state["step"]
        mean = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        root = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
        table.index_copy_(0, rows, weight)


class Optimizers:
    """Several optimizers stepped as one: all that RecBole's loop, a GradScaler and `last.pth` need of an optimizer.

    Args:
        parts: by the name of their state in a checkpoint.
        clip: arguments of torch's `clip_grad_norm_`, applied to all gradients together before each step; or None.
    """

    def __init__(self, parts: Mapping[str, Optimizer], clip: Mapping[str, Any] | None = None) -> None:
        self.parts = dict(parts)
        self.clip = clip

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Clip if asked to, then step every part."""
        if self.clip:
            clip_grad_norm([parameter for group in self.param_groups for parameter in group["params"]], self.clip)
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states by part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def clip_grad_norm(parameters: Iterable[Tensor], settings: Mapping[str, Any]) -> None:
    """The norm clipping of torch for dense and sparse gradients together; `clip_grad_norm_` knows dense ones only.

    Args:
        parameters: some may have no gradient.
        settings: arguments of `clip_grad_norm_`, for example ``{"max_norm": 5}``.
    """
    dense: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values = parameter.grad.values()  # the same memory: scaled in place
            stand_in = torch.empty_like(values)
            stand_in.grad = values
            dense.append(stand_in)
        else:
            dense.append(parameter)
    nn.utils.clip_grad_norm_(dense, **settings)


@dataclass(frozen=True)
class _Learner:
    """What we know of a word of config key `learner`.

    Attributes:
        rows: makes the row-wise optimizer, from tables, learning rate and weight decay; None where there is none.
        decays_rows: whether it takes a weight decay.
        fused: whether torch's class has ``fused=True``.
    """

    rows: Callable[..., Optimizer] | None = None
    decays_rows: bool = False
    fused: bool = False


_LEARNERS = {
    "adam": _Learner(partial(RowAdam, decoupled=False), decays_rows=True, fused=True),
    "adamw": _Learner(partial(RowAdam, decoupled=True), decays_rows=True, fused=True),
    "sgd": _Learner(torch.optim.SGD, fused=True),
    "adagrad": _Learner(torch.optim.Adagrad),
}


def updates_rows(settings: PADConfig, n_items: int, samples_items: bool, phase: str) -> bool:
    """Whether a phase updates its ID tables row by row (config key `sparse_updates`).

    Args:
        settings: of the phase.
        n_items: items, without padding.
        samples_items: whether a step of its loss reads some of the items, not all.
        phase: its name, for the message.

    Raises:
        InputError: with ``always``, if the loss or the learner of the phase does not allow it.
    """
    obstacle = _obstacle(settings, samples_items)
    if settings.sparse_updates == "always" and obstacle:
        raise InputError(f"sparse_updates: always is not possible in phase {phase}: {obstacle}; {_REMEDY}")
    wanted = settings.sparse_updates == "always" or (settings.sparse_updates == "auto" and n_items >= SPARSE_FROM)
    if wanted and obstacle and samples_items:
        getLogger().warning(f"sparse_updates: phase {phase} writes all {n_items} ID vectors in each step: {obstacle}")
    return wanted and not obstacle


def _obstacle(settings: PADConfig, samples_items: bool) -> str:
    """Why tables cannot be updated row by row, or an empty string."""
    learner = _LEARNERS.get(settings.learner, _Learner())
    if not samples_items:
        return f"loss: {settings.loss} has a gradient for every item (bce and sampled_softmax have not)"
    if learner.rows is None:
        can = ", ".join(name for name, entry in _LEARNERS.items() if entry.rows)
        return f"learner: {settings.learner} has no row-wise form ({can} have)"
    if settings.weight_decay > 0 and not learner.decays_rows:
        can = ", ".join(name for name, entry in _LEARNERS.items() if entry.decays_rows)
        return f"learner: {settings.learner} with weight_decay > 0 has no row-wise form ({can} have)"
    return ""


def row_tables(experts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The tables whose gradients are sparse."""
    modules = (module for expert in experts for module in expert.modules())
    embeddings = (module for module in modules if isinstance(module, nn.Embedding))
    return [cast(nn.Parameter, embedding.weight) for embedding in embeddings if embedding.sparse]


def dense_groups(
    experts: Iterable[nn.Module], gate: Iterable[nn.Parameter], settings: PADConfig, tables: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """Parameter groups of the dense optimizer: the experts without `tables`, and the gate with its own rate, no decay.

    Raises:
        InputError: if ``fused_optimizer`` is set and the learner has no fused form, or the learner has no dense one.
    """
    if settings.learner == "sparse_adam":
        raise InputError("learner: sparse_adam knows no dense parameters; set learner: adam and sparse_updates: always")
    fused = {"fused": True} if settings.fused_optimizer else {}
    if fused and not _LEARNERS.get(settings.learner, _Learner()).fused:
        can = ", ".join(name for name, entry in _LEARNERS.items() if entry.fused)
        raise InputError(f"fused_optimizer: True is for {can}, not for learner: {settings.learner}; set it to False")
    left_out = {id(table) for table in tables}
    parameters = [p for expert in experts for p in expert.parameters() if id(p) not in left_out]
    groups: list[dict[str, Any]] = [{"params": parameters, **fused}]
    of_gate = list(gate)
    if of_gate:
        groups.append({"params": of_gate, "lr": settings.gate_learning_rate, "weight_decay": 0.0, **fused})
    return groups


def with_rows(
    dense: Optimizer, tables: Sequence[nn.Parameter], settings: PADConfig, clip: Mapping[str, Any] | None
) -> Optimizers:
    """The dense optimizer and the row-wise one of the tables, as one.

    Args:
        dense: of all other parameters.
        tables: see `row_tables`; at least one.
        settings: of the phase; `updates_rows` has allowed them.
        clip: see `Optimizers`.
    """
    make = _LEARNERS[settings.learner].rows
    assert make is not None, "updates_rows was not asked"
    rows = make(list(tables), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return Optimizers({"dense": dense, "rows": rows}, clip)
