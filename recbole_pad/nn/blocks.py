"""How a long range of rows is cut into blocks."""

from __future__ import annotations

import math


def even_blocks(start: int, stop: int, largest: int, unit: int = 1) -> list[slice]:
    """Cut the range [start, stop) into the fewest blocks of at most `largest`, equally long to within one unit.

    Args:
        start: where the range begins.
        stop: where it ends.
        largest: most rows of a block, >= 1; with a unit above it, a block has one unit.
        unit: all blocks but a last, shorter one are a multiple of it, so that few lengths occur.
    """
    n_units = math.ceil((stop - start) / unit)
    n_blocks = math.ceil(n_units / max(1, largest // unit))
    ends = [start + n_units * k // n_blocks * unit for k in range(1, n_blocks)]
    return [slice(low, high) for low, high in zip([start, *ends], [*ends, stop], strict=True)] if n_blocks else []
