"""Linear layers on a CPU through oneDNN where MKL, torch's default, is the slower of the two.

MKL keeps to AVX2 on CPUs that are not Intel's. On an AMD Zen 5 core it does 105 GFLOP/s in float32 where oneDNN, which
torch ships too, does 240; the results agree within rounding. On other CPUs, on GPUs, in other dtypes, inside
autocast and in compiled code `F.linear` is used.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 32  # oneDNN compiles a kernel for each shape, in 0.5 ms: rows are padded to a multiple, so that there are few
_CPU_INFO = Path("/proc/cpuinfo")


@cache
def prefers_onednn() -> bool:
    """Whether this machine multiplies float32 matrices faster by oneDNN than by MKL: AVX-512, and not made by Intel."""
    has_both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return has_both and is_wide and hasattr(torch.ops.mkldnn, "_linear_pointwise") and not _made_by_intel()


def _made_by_intel() -> bool:
    info = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.is_file() else platform.processor()
    return "GenuineIntel" in info


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, within rounding: values @ weight.T + bias, (..., n) with weight (m, n) -> (..., m)."""
    if not (_is_plain(values, weight) and prefers_onednn()):
        return F.linear(values, weight, bias)
    product: Tensor = _OneDNNLinear.apply(values.reshape(-1, values.size(-1)), weight, bias)
    return product.view(*values.shape[:-1], -1)


def _is_plain(values: Tensor, weight: Tensor) -> bool:
    """Whether this is a float32 product on the CPU with anything to multiply, not to be compiled (Inductor fails)."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return values.dtype == weight.dtype == torch.float32 and values.numel() > 0


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = pad_rows(values)
        ctx.save_for_backward(padded, weight)
        return _product(padded, weight, bias)[: len(values)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        padded, weight = ctx.saved_tensors
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        grad = pad_rows(upstream[0])
        return (
            _product(grad, weight.t())[: len(upstream[0])] if needs_values else None,
            _product(grad.t(), padded.t()) if needs_weight else None,
            upstream[0].sum(dim=0) if needs_bias else None,
        )


def _product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do values @ weight.T + bias by oneDNN: (n, k) and (m, k) -> (n, m)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return product


def pad_rows(values: Tensor) -> Tensor:
    """Zero rows appended up to a multiple of `ROWS`, (n, d) -> (n', d); not copied where there is nothing to append."""
    n_more = -len(values) % ROWS
    return F.pad(values, (0, 0, 0, n_more)) if n_more else values


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, values: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return linear(values, self.weight, self.bias)
