"""The gate, fitted on validation data with the experts frozen.

On training data, items that an ID expert has memorised make it look better than it is: it knows those of a cold bin by
heart, so a gate learned there trusts it; on held-out interactions it does not know them. A few numbers fitted on
validation rows see the difference. First, for a moment, by cross entropy, which finds the region, then by a smooth
NDCG, which is what counts. Rows are weighted by how the frequency of targets drifts from one step to the next
(`drift_weights`). Source: ours, docs/decisions.md, "Gate".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from recbole_pad.data.loader import in_random_order
from recbole_pad.model.pad import PAD
from recbole_pad.nn.ragged import Ragged
from recbole_pad.nn.score_pairs import ScorePairs

log = logging.getLogger(__name__)

_MAX_ROWS = 50_000  # validation rows used
_MANY_MASKED = 0.05  # share of the validation targets from which on it is said that they are masked
_PAIR_MEMORY = 2**30  # bytes for the pairs of experts without vectors; no further rows are used beyond
_PAIR_BYTES = 72  # of a pair while those of all rows are put together
_MAX_ITEMS = 20_000  # candidates, drawn once; the targets of a batch are added
_BATCH_ROWS = 128
_LEARNING_RATE = 0.05
_AVERAGED_STEPS = 150
_RANK_TEMPERATURE = 0.3  # score difference over which a rank counts as half won


@dataclass(frozen=True)
class HeldOutRows:
    """Validation rows: each expert's user states or pairs, the targets, and what must not be recommended.

    Attributes:
        states: of each expert with vectors, shape (n, d_k).
        pairs: of each expert without, the items that it scores in each row, with their scores.
        newest: newest item of each history, shape (n,).
        target: item ids, shape (n,).
        masked: the item ids that the protocol masks for each row; none where nothing is masked.
        n_masked_targets: rows that were left out because the protocol masks their target.
        is_cut: whether rows were left out, since memory is bounded.
    """

    states: list[Tensor]
    pairs: list[Ragged]
    newest: Tensor
    target: Tensor
    masked: Ragged
    n_masked_targets: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class Candidates:
    """What targets are ranked among: all items, or a sample of them, and the vectors of all that may be needed.

    Attributes:
        sample: item ids, sorted, without padding.
        item_ids: the sample, the targets of all rows and padding, sorted.
        vectors: of each expert, of `item_ids`, shape (n, d_k).
    """

    sample: Tensor
    item_ids: Tensor
    vectors: list[Tensor]

    @classmethod
    @torch.no_grad()
    def draw(cls, model: PAD, target: Tensor, generator: torch.Generator, withheld: Tensor | None = None) -> Candidates:
        """Draw the sample, without withheld items, and compute the vectors; once, the experts do not change."""
        sample = torch.arange(1, model.n_items)
        if withheld is not None:
            sample = sample[~withheld[1:]]
        if len(sample) >= _MAX_ITEMS:
            sample = sample[torch.randperm(len(sample), generator=generator)[:_MAX_ITEMS].sort().values]
        sample = sample.to(target.device)
        item_ids = torch.unique(torch.cat([sample.new_zeros(1), sample, target]))
        return cls(sample, item_ids, [vectors.detach() for vectors in model.expert_vectors(item_ids)])

    def of(self, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Sorted ids of the candidates with a batch's targets, and their vectors."""
        items = torch.unique(torch.cat([self.sample, target]))
        if len(items) == len(self.item_ids) - 1:  # all but padding
            return items, [vectors[1:] for vectors in self.vectors]
        place = torch.searchsorted(self.item_ids, items)
        return items, [vectors[place] for vectors in self.vectors]


@torch.no_grad()
def held_out_rows(model: PAD, batches: Iterable[Any]) -> HeldOutRows:
    """Collect the rows of a full-ranking loader; rows whose target is masked (sure misses) teach nothing and go.

    No further batch is taken once there are `_MAX_ROWS` rows, or `_PAIR_MEMORY` is used up (`is_cut`).
    """
    states: list[list[Tensor]] = []
    pairs: list[list[ScorePairs]] = []
    newest: list[Tensor] = []
    targets, masked_rows, masked_items = [], [], []
    n_rows, n_masked_targets, n_pairs, is_cut = 0, 0, 0, False
    for interaction, history, _, target in batches:
        if n_rows >= _MAX_ROWS or n_pairs * _PAIR_BYTES >= _PAIR_MEMORY:
            is_cut = True
            break
        interaction = interaction.to(model.device)
        target = target.to(model.device)
        nothing = target.new_zeros(0)
        rows, items = (nothing, nothing) if history is None else (part.to(model.device) for part in history)
        kept = torch.ones_like(target, dtype=torch.bool)
        kept[rows[items == target[rows]]] = False
        states.append([state[kept] for state in model.expert_states(interaction)])
        newest.append(model.newest_items(interaction)[kept])
        targets.append(target[kept])
        place = n_rows + kept.cumsum(0) - 1
        pairs.append([_of_rows(own, kept, place) for own in model.expert_pairs(interaction)])
        n_pairs += sum(len(own.rows) for own in pairs[-1])
        masked_rows.append(place[rows][kept[rows]])
        masked_items.append(items[kept[rows]])
        n_rows += int(kept.sum())
        n_masked_targets += int((~kept).sum())
    masked = Ragged.from_pairs(torch.cat(masked_rows), torch.cat(masked_items), n_rows)
    return HeldOutRows(
        [torch.cat(parts) for parts in zip(*states, strict=True)],
        [_ragged(parts, n_rows) for parts in zip(*pairs, strict=True)],
        torch.cat(newest),
        torch.cat(targets),
        masked,
        n_masked_targets,
        is_cut,
    )


def _of_rows(pairs: ScorePairs, kept: Tensor, place: Tensor) -> ScorePairs:
    """The pairs of the kept rows, under their new row numbers."""
    own = kept[pairs.rows]
    return ScorePairs(place[pairs.rows][own], pairs.items[own], pairs.values[own])


def _ragged(parts: Sequence[ScorePairs], n_rows: int) -> Ragged:
    pairs = ScorePairs.joined(parts)
    return Ragged.from_pairs(pairs.rows, pairs.items, n_rows, pairs.values)


def _bounded_rows(model: PAD, loader: Any, seed: int) -> HeldOutRows:
    """All rows; if they are too many, those of batches drawn at random, for a loader's first rows are the oldest."""
    rows = held_out_rows(model, loader)
    if rows.is_cut:
        rows = held_out_rows(model, in_random_order(loader, seed))
        log.warning(
            f"gate_fit: valid: fitted on {len(rows.target):,} validation rows, from batches drawn at random; the "
            f"others are left out (at most {_MAX_ROWS:,} rows and {_PAIR_MEMORY // _PAIR_BYTES:,} item pairs are held)"
        )
    return rows


def fit_gate(model: PAD, loader: Any, target_weights: Tensor, seed: int, withheld: Tensor | None = None) -> bool:
    """Fit the gate's parameters to the held-out targets; nothing else changes.

    Args:
        model: in the last phase, with the weights to keep.
        loader: RecBole's validation loader of all rows; its history index (if any) is masked as at evaluation.
        target_weights: weight of a row by its target item, shape (V,).
        seed: of the choice and the order of rows, and of the sample of candidates.
        withheld: items that no validation row can have as its target (key `cold_split`), shape (V,), bool: among the
            candidates they would only teach the gate to put down what was never seen. None: there are none.

    Returns:
        Whether there was a row to fit it to.
    """
    model.eval()
    rows = _bounded_rows(model, loader, seed)
    share = rows.n_masked_targets / max(rows.n_masked_targets + len(rows.target), 1)
    if share > _MANY_MASKED:
        log.warning(
            f"{100 * share:.0f} % of the validation targets stand in their user's own history, which is masked: "
            "nothing can hit them. Where people come back to items, set mask_history: False (or protocol: recbole)"
        )
    if not len(rows.target):
        return False
    row_weights = target_weights.to(rows.target.device)[rows.target]
    row_weights = row_weights / row_weights.mean()
    optimizer = torch.optim.Adam(model.gate.parameters(), lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    candidates = Candidates.draw(model, rows.target, generator, withheld)
    averaged = AveragedModel(model.gate)  # over the end of the fit: the path there is noisy
    steps_left = sum(n_steps for _, n_steps in _STAGES)
    for loss_of, n_steps in _STAGES:
        for batch in _batches(len(rows.target), n_steps, generator):
            batch = batch.to(rows.target.device)
            scores, place = _scores(model, candidates, rows, batch)
            loss = (row_weights[batch] * loss_of(scores, place)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps_left -= 1
            if steps_left < _AVERAGED_STEPS:
                averaged.update_parameters(model.gate)
    model.gate.load_state_dict(averaged.module.state_dict())
    model.eval()  # drops the item vectors that were folded with the old weights
    return True


def _batches(n_rows: int, n_steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of `n_steps` steps: whole passes in random order, as many as it takes."""
    batches: list[Tensor] = []
    for _ in range(n_steps):
        if not batches:
            batches = list(torch.randperm(n_rows, generator=generator).split(_BATCH_ROWS))
        yield batches.pop()


def _cross_entropy(scores: Tensor, place: Tensor) -> Tensor:
    return F.cross_entropy(scores, place, reduction="none")


def _smooth_ndcg(scores: Tensor, place: Tensor) -> Tensor:
    """-1 / log2(1 + rank), the rank a sum of sigmoids. Source: Qin et al. 2010 (ApproxNDCG), for one target."""
    target_score = scores.gather(1, place[:, None])
    # the target's own sigmoid(0) = 0.5 is in the sum
    rank = 0.5 + torch.sigmoid((scores - target_score) / _RANK_TEMPERATURE).sum(dim=1)
    return -1 / torch.log2(1 + rank)


_STAGES: tuple[tuple[Callable[[Tensor, Tensor], Tensor], int], ...] = ((_cross_entropy, 50), (_smooth_ndcg, 450))


def _scores(model: PAD, candidates: Candidates, rows: HeldOutRows, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the batch's candidates, masked ones at -1e9, and the column of each row's target."""
    target = rows.target[batch]
    items, vectors = candidates.of(target)
    weights, of_users = model.gate_weights(items), model.user_weights(rows.newest[batch])
    with_vectors, with_pairs = model.gate_columns()
    scores = torch.zeros(len(batch), len(items), device=target.device)
    for k, state, vector in zip(with_vectors, rows.states, vectors, strict=True):
        scores = scores + of_users[:, k, None] * weights[:, k] * (state[batch] @ vector.T)
    for k, pairs in zip(with_pairs, rows.pairs, strict=True):
        assert pairs.values is not None
        row, column, entry = _among(pairs, batch, items)
        own = of_users[row, k] * weights[column, k] * pairs.values[entry]
        scores = scores.index_put((row, column), own, accumulate=True)
    return scores.masked_fill(_mask(rows, batch, items), -1e9), torch.searchsorted(items, target)


def _among(lists: Ragged, batch: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(place in the batch, place in `items`, entry) of the entries of some lists whose item is in `items`, sorted."""
    row, entry = lists.entries(batch)
    place = torch.searchsorted(items, lists.items[entry]).clamp(max=len(items) - 1)
    found = items[place] == lists.items[entry]
    return row[found], place[found], entry[found]


def _mask(rows: HeldOutRows, batch: Tensor, items: Tensor) -> Tensor:
    """True where an item of the batch's candidates is masked for the row: shape (b, n)."""
    mask = torch.zeros(len(batch), len(items), dtype=torch.bool, device=items.device)
    row, column, _ = _among(rows.masked, batch, items)
    mask[row, column] = True
    return mask
