"""Equal-mass bins by walking down the sorted list, one item at a time."""

from __future__ import annotations

from fractions import Fraction


def equal_mass_bins(counts: list[int], n_bins: int) -> list[int]:
    items = sorted(range(1, len(counts)), key=lambda item: (-counts[item], item))
    wanted = Fraction(sum(counts[1:]), n_bins)
    bins = [0] * len(counts)
    number, mass = 1, 0
    for item in items:
        bins[item] = number if counts[item] else n_bins
        mass += counts[item]
        if mass >= wanted and number < n_bins:
            number, mass = number + 1, 0
    return bins
