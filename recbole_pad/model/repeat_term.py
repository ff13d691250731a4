"""What is added to the score of an item that the user has had: one number, fitted on validation data.

An expert that compares with the history gives the history's own items the highest scores. Where history is masked that
costs nothing; where it is not, it costs the places that they take, unless people come back to items. How often they do
is seen in validation data. Source: ours, docs/decisions.md, "Repeats".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_pad.data.loader import in_random_order, of_all_rows
from recbole_pad.nn.score_pairs import ScorePairs, distinct_pairs

log = logging.getLogger(__name__)

_K = 10  # of the NDCG that is optimised
_MAX_ROWS = 5_000  # validation rows used, for one number
_NUMBERS = 2**24  # compared at once
_CANDIDATES = 400  # values that are tried, between those at which ranks change


class RepeatTerm(nn.Module):
    """Adds `shift` to the score of every item of the visible history; 0 until it is fitted.

    Args:
        n_items: V, padding included.
    """

    shift: Tensor

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, item_seq: Tensor) -> ScorePairs:
        """item_seq (B, N), padded with 0 -> the shift for each distinct item of a row."""
        every_row = torch.arange(len(item_seq), device=item_seq.device)[:, None].expand_as(item_seq)
        rows, items = distinct_pairs(every_row, item_seq, self.n_items)
        return ScorePairs(rows, items, self.shift.expand(len(rows)))


@dataclass(frozen=True)
class HeldOutScores:
    """What the rank of a validation target depends on, as the items of the history move together.

    Attributes:
        target: score of each row's target, shape (n,).
        is_repeat: whether it stands in the history, shape (n,).
        others: the 10 highest scores outside the history, the target left out, shape (n, 10).
        history: scores of the distinct items of the history, the target left out; -inf where there is none, (n, N).
    """

    target: Tensor
    is_repeat: Tensor
    others: Tensor
    history: Tensor

    def ndcg(self, shift: Tensor) -> Tensor:
        """Mean NDCG@10 with history not masked, for each shift: (s,) -> (s,)."""
        of_target = self.target + self.is_repeat * shift[:, None]  # (s, n)
        above = (self.others > of_target[..., None]).sum(dim=2)
        above += (self.history + shift[:, None, None] > of_target[..., None]).sum(dim=2)
        return torch.where(above < _K, 1 / torch.log2(above + 2.0), 0.0).mean(dim=1)

    def turning_points(self) -> Tensor:
        """The shifts at which a rank changes, sorted, shape (m,)."""
        moved = (self.target[:, None] - self.history)[~self.is_repeat]
        passed = (self.others - self.target[:, None])[self.is_repeat]
        points = torch.cat([moved.flatten(), passed.flatten()])
        return points[points.isfinite()].unique()


def fit_repeat_term(model: Any, loader: Any) -> None:
    """Fit the shift of a model's repeat term to validation rows, in every process of a run alike.

    Args:
        model: a `VectorRecommender` with the weights to keep. One that is there already has no part in the fit.
        loader: RecBole's full-ranking validation loader. Of more than 5,000 rows, those of batches drawn at random are
            taken.
    """
    model.eval()
    model.repeats.shift.zero_()
    memory = model.settings.score_memory_mb * 2**20
    loader = of_all_rows(loader)
    batches = in_random_order(loader, model.settings.seed) if len(loader._dataset) > _MAX_ROWS else loader
    shift = model.processes.from_first(lambda: best_shift(held_out_scores(model, batches, memory)))
    model.repeats.shift.fill_(shift)
    log.info(f"repeat_term: {shift:+.4g} for items of the history, fitted on validation data")


@torch.no_grad()
def held_out_scores(model: Any, batches: Iterable[Any], memory: int) -> HeldOutScores:
    """Score validation rows, those of the first batches that hold 5,000 of them.

    Args:
        model: a `VectorRecommender` whose repeat term is 0.
        batches: of RecBole's validation loader of all rows.
        memory: bytes for scores of users x items that are held at once.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    n_rows, at_once = 0, max(1, memory // (8 * model.n_items))  # a model may hold them twice
    for interaction, _, _, target in batches:
        for rows in torch.arange(len(target)).split(at_once):
            parts.append(_of_rows(model, interaction[rows].to(model.device), target[rows].to(model.device)))
        n_rows += len(target)
        if n_rows >= _MAX_ROWS:
            break
    return HeldOutScores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _of_rows(model: Any, interaction: Any, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, item_seq = model.full_sort_predict(interaction), interaction[model.ITEM_SEQ]
    scores[:, 0] = -torch.inf
    of_target = scores.gather(1, target[:, None])
    is_repeat = (item_seq == target[:, None]).any(dim=1)
    scores.scatter_(1, target[:, None], -torch.inf)
    items = item_seq.sort(dim=1).values
    is_first = torch.cat([items[:, :1] > 0, items[:, 1:] != items[:, :-1]], dim=1)
    history = scores.gather(1, items).masked_fill(~is_first, -torch.inf)
    scores.scatter_(1, item_seq, -torch.inf)
    others = scores.topk(min(_K, scores.size(1)), dim=1).values
    return of_target[:, 0], is_repeat, others, history


def best_shift(rows: HeldOutScores) -> float:
    """The shift with the highest NDCG@10; the lowest of equal ones, so that where nobody comes back nothing does."""
    points = rows.turning_points()
    if not len(points):
        return 0.0
    last = len(points) - 1
    quantiles = torch.linspace(0, last, min(_CANDIDATES, len(points)), device=points.device).long()
    chosen = points[quantiles.clamp(max=last)]  # float32 may round up
    between = (chosen[1:] + chosen[:-1]) / 2
    candidates = torch.cat([chosen[:1] - 1, between, chosen[-1:] + 1])
    found = torch.cat([rows.ndcg(some) for some in candidates.split(max(1, _NUMBERS // rows.history.numel()))])
    return float(candidates[found.argmax()])
