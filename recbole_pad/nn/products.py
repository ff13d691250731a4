"""Matrix products outside autograd and in given memory, by the faster of torch's CPU libraries (see `linear`)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_pad.nn.linear import ROWS, prefers_onednn


def product(left: Tensor, right: Tensor, memory: Tensor) -> Tensor:
    """Return left @ right.T, in the type of `memory`: (m, k) and (n, k) -> (m, n).

    Args:
        left: shape (m, k). Where oneDNN is the faster library, m should be a multiple of `ROWS`: it compiles a kernel
            for each shape, so other numbers of rows, which may never occur again, are left to torch's own product.
        right: shape (n, k), same type.
        memory: at least m * n elements of this or a wider type, which may hold the result; 1-D.
    """
    if _is_for_onednn(left, memory):
        return _onednn(left, right)
    result = memory[: len(left) * len(right)].view(len(left), len(right))
    if left.dtype == memory.dtype:
        return torch.mm(left, right.T, out=result)
    return result.copy_(left @ right.T)


def add_product(total: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
    """Add factor * left @ right.T to `total`, which may be of a wider type: (m, k) and (n, k) -> (m, n)."""
    if _is_for_onednn(left, total):
        total.add_(_onednn(left, right), alpha=factor)
    elif left.dtype == total.dtype:
        total.addmm_(left, right.T, alpha=factor)
    else:
        total.add_(left @ right.T, alpha=factor)


def row_unit(rows: Tensor) -> int:
    """Of what the number of rows should be a multiple, as `left` above: `ROWS` where oneDNN multiplies them, else 1."""
    return ROWS if rows.dtype == torch.float32 and rows.device.type == "cpu" and prefers_onednn() else 1


def _is_for_onednn(left: Tensor, result: Tensor) -> bool:
    return left.dtype == result.dtype and row_unit(left) > 1 and len(left) % row_unit(left) == 0


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    if not (right.is_contiguous() or right.T.is_contiguous()):  # with gaps between its rows: 1,000 times slower
        right = right.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result
