"""What a space of item vectors looks like, and how much of it another space keeps: all from samples of items.

Vectors are rows of items without the padding row; distances are cosine distances. Source: docs/method.md section 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor

from recbole_pad.nn.kernels import KERNELS
from recbole_pad.nn.mmd import mk_mmd

_ROWS_PER_BLOCK = 1024
_DENSE = 50  # an item is drawn by trial where the candidates are more than so many times the items to avoid


def _float64_directions(vectors: Tensor) -> Tensor:
    """Rows of length 1, float64; zero rows stay zero."""
    return torch.nn.functional.normalize(vectors.detach().double(), dim=1)


def anisotropy(vectors: Tensor) -> float:
    """Mean cosine of two different items: 0 for directions that spread evenly, near 1 for a narrow cone.

    Args:
        vectors: shape (n, d), n >= 2.
    """
    unit = _float64_directions(vectors)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def spectrum(vectors: Tensor) -> list[float]:
    """Shares of the variance along the principal axes, largest first: shape (min(n, d),), sums to 1.

    All zeros where the vectors are equal.
    """
    variances = torch.linalg.eigvalsh(_smaller_gram(_centred(vectors))).flip(0).clamp(min=0)
    total = float(variances.sum())
    return [float(value) / total if total > 0 else 0.0 for value in variances]


def principal_plane(vectors: Tensor) -> NDArray[np.float32]:
    """The rows, scaled to length 1, in their first two principal components: (n, d) -> (n, 2), centred.

    Each axis points to where its row farthest from 0 is. A component without variance is 0.
    """
    centred = _centred(_float64_directions(vectors))
    n, width = centred.shape
    variances, axes = torch.linalg.eigh(_smaller_gram(centred))
    variances, axes = variances.flip(0)[:2].clamp(min=0), axes.flip(1)[:, :2]
    plane = centred @ axes if width <= n else axes * variances.sqrt()
    plane = torch.nn.functional.pad(plane, (0, 2 - plane.size(1)))
    farthest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    turned: NDArray[np.float32] = torch.where(farthest < 0, -plane, plane).float().numpy()
    return turned


def _centred(vectors: Tensor) -> Tensor:
    wide = vectors.detach().double()
    return wide - wide.mean(dim=0)


def _smaller_gram(centred: Tensor) -> Tensor:
    """The (d, d) or the (n, n) matrix of inner products, whichever is smaller: both have the variances."""
    return centred.T @ centred if centred.size(1) <= len(centred) else centred @ centred.T


def effective_rank(shares: Sequence[float]) -> float:
    """Exponential of the entropy of the spectrum: how many directions carry the variance; 0 for no variance.

    Source: Roy and Vetterli 2007, "The effective rank", EUSIPCO.
    """
    positive = np.array([share for share in shares if share > 0])
    return float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0


def nearest_neighbours(vectors: Tensor, k: int = 10) -> Tensor:
    """The k nearest other items of each item by cosine: (n, d) -> (n, k), places in `vectors`.

    Raises:
        ValueError: not more than `k` items.
    """
    if len(vectors) <= k:
        raise ValueError(f"n > {k} items are needed, got {len(vectors)}")
    unit = _float64_directions(vectors).float()
    near = []
    for start in range(0, len(unit), _ROWS_PER_BLOCK):
        cosines = unit[start : start + _ROWS_PER_BLOCK] @ unit.T
        cosines.diagonal(offset=start).fill_(-torch.inf)
        near.append(cosines.topk(k, dim=1).indices)
    return torch.cat(near)


def neighbour_overlap(first: Tensor, second: Tensor) -> float:
    """Mean share of an item's k nearest neighbours that are the same in two spaces.

    1 if all are; about k / (n - 1) by chance.

    Args:
        first: `nearest_neighbours` of n items in one space, shape (n, k).
        second: those of the same items in another, shape (n, k).

    Raises:
        ValueError: unequal shapes.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"neighbours of the same items are needed, got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return int((first[:, :, None] == second[:, None, :]).sum()) / first.numel()


def mmd_by_kernel(text: Tensor, ids: Tensor) -> dict[str, float]:
    """Squared MMD between two samples in every kernel of `KERNELS`; shape (n, d) both."""
    return {name: float(mk_mmd(text.detach(), ids.detach(), name)) for name in KERNELS}


def history_distances(
    vectors: Tensor, histories: Sequence[NDArray[np.integer]], others: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Cosine distance of each history item to the user's other item, all users in one list.

    Args:
        vectors: all items, padding included, shape (V, d); only the rows that are named are read.
        histories: item ids of each user.
        others: one item id of each user, shape (U,).
    """
    items = np.concatenate(histories).astype(np.int64)
    other = np.repeat(np.asarray(others, dtype=np.int64), [len(items) for items in histories])
    used, places = np.unique(np.concatenate([items, other]), return_inverse=True)
    unit = _float64_directions(vectors[torch.from_numpy(used).to(vectors.device)])
    one, two = torch.from_numpy(places).split(len(items))
    distances: NDArray[np.float64] = (1 - (unit[one] * unit[two]).sum(dim=1)).cpu().numpy()
    return distances


def unseen_of_same_bin(
    histories: Sequence[NDArray[np.integer]], targets: NDArray[np.integer], bins: NDArray[np.integer], seed: int
) -> NDArray[np.int64]:
    """For each user a random item of the target's frequency bin, not the target and not in the history.

    Args:
        histories: item ids of each user.
        targets: one item id of each user, shape (U,).
        bins: frequency bin of each item, shape (V,); items of bin 0 (padding, and what else must not be drawn) are not
            drawn.
        seed: of the draws.

    Returns:
        Item ids, shape (U,); 0 where the bin holds no such item.
    """
    generator = np.random.default_rng(seed)
    members = {int(number): np.flatnonzero(bins == number) for number in np.unique(bins[targets]) if number > 0}
    nothing = np.zeros(0, dtype=np.int64)
    return np.array(
        [
            _outside(members.get(int(bins[target]), nothing), np.append(items, target), generator)
            for items, target in zip(histories, targets, strict=True)
        ],
        dtype=np.int64,
    )


def _outside(candidates: NDArray[np.integer], taken: NDArray[np.integer], generator: np.random.Generator) -> int:
    if len(candidates) > _DENSE * len(taken):  # a trial rarely fails, and all the candidates are not looked at
        while True:
            drawn = int(generator.choice(candidates))
            if drawn not in taken:
                return drawn
    free = candidates[~np.isin(candidates, taken)]
    return int(generator.choice(free)) if len(free) else 0


def preserved_geometry(
    before: Tensor, after: Tensor, histories: Sequence[NDArray[np.integer]], others: NDArray[np.integer]
) -> float:
    """Kendall's tau (tau-b) between the distances of users' histories to an item, in two spaces.

    All (history item, other item) pairs of all users make one list of distances in each space. 1: the order of the
    distances is kept; 0: nothing of it is. A pair of an item with itself has no distance and is left out, as are users
    without another item (0). NaN where there are no pairs, or all distances of a space are equal.

    Args:
        before: item vectors of one space, shape (V, d), row 0 padding; only the rows that are named are read.
        after: of the other, shape (V, d').
        histories: item ids of each user.
        others: one item id of each user, shape (U,): the held-out item, or `unseen_of_same_bin`.

    Source: PAD, analysis of catastrophic forgetting (docs/method.md section 7).
    """
    pairs = [(items[items != other], other) for items, other in zip(histories, others, strict=True) if other > 0]
    pairs = [(items, other) for items, other in pairs if len(items)]
    if not pairs:
        return float("nan")
    own_items, own_others = [items for items, _ in pairs], np.array([other for _, other in pairs])
    return float(kendalltau(*(history_distances(space, own_items, own_others) for space in (before, after)))[0])
