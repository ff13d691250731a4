"""The Markov expert's scores, one pair of interactions at a time, on Python floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WEIGHTS = {1: 1.0, 2: 0.5, 3: 0.25}  # of an item so many places later
SCALE = 40.0


def cosines(sequences: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """(a, b) -> how often b follows a, by distance, over sqrt(count of a * count of b); only pairs that occur."""
    follows: dict[tuple[int, int], float] = {}
    counts: dict[int, int] = {}
    for sequence in sequences:
        for place, item in enumerate(sequence):
            counts[item] = counts.get(item, 0) + 1
            for distance, weight in WEIGHTS.items():
                if place + distance < len(sequence):
                    pair = item, sequence[place + distance]
                    follows[pair] = follows.get(pair, 0.0) + weight
    return {(a, b): value / math.sqrt(counts[a] * counts[b]) for (a, b), value in follows.items()}


def score(history: Sequence[int], item: int, table: Mapping[tuple[int, int], float], decay: float) -> float:
    """SCALE * sum_j decay^j T[j-th last item, item]."""
    return SCALE * sum(decay**j * table.get((seen, item), 0.0) for j, seen in enumerate(reversed(history)))
