"""Products in given memory equal torch's own, whichever library makes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_pad.nn.linear import ROWS
from recbole_pad.nn.products import add_product, product, row_unit


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(rows: int, width: int, seed: int) -> dict[str, Tensor]:
    """The same (rows, width) matrix in several layouts."""
    plain = normal(rows, width, seed=seed)
    wide = torch.zeros(rows, width + 3, dtype=torch.float64)
    wide[:, 1:-2] = plain
    return {"rows": plain, "columns": plain.T.contiguous().T, "gaps": wide[:, 1:-2], "gap columns": _gaps(plain)}


def _gaps(plain: Tensor) -> Tensor:
    tall = torch.zeros(plain.shape[1], plain.shape[0] + 3, dtype=plain.dtype)
    tall[:, 2:-1] = plain.T
    return tall[:, 2:-1].T


LAYOUTS = list(views(1, 1, 0))


@pytest.mark.parametrize("rows", [ROWS, 2 * ROWS, 7])
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_products_equal_float64_in_any_layout(left: str, right: str, rows: int):
    a, b = views(rows, 9, 1)[left], views(11, 9, 2)[right]
    expected = a @ b.T
    got = product(_keep(a), _keep(b), torch.empty(rows * 11 + 5))
    assert torch.allclose(got.double(), expected, atol=1e-5)
    total = torch.ones(11, rows).T
    add_product(total, _keep(a), _keep(b), -0.5)
    assert torch.allclose(total.double(), 1 - 0.5 * expected, atol=1e-5)


def _keep(values: Tensor) -> Tensor:
    """In float32, with the strides that it has."""
    return torch.empty_strided(values.shape, values.stride()).copy_(values)


def test_sums_of_half_precision_products_are_kept_in_float32():
    a, b = torch.ones(3, 2).bfloat16(), torch.ones(4, 2).bfloat16()
    total = torch.full((3, 4), 1 / 3)
    add_product(total, a, b)
    assert torch.equal(total, torch.full((3, 4), 1 / 3) + 2)
    assert product(a, b, torch.empty(12)).dtype == torch.float32


def test_only_float32_rows_are_padded():
    assert row_unit(torch.zeros(3, dtype=torch.float64)) == 1
    assert row_unit(torch.zeros(3).bfloat16()) == 1
    assert row_unit(torch.zeros(3)) in (1, ROWS)
