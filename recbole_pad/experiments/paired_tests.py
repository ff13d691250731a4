"""Is one model better than another, or lucky: paired tests between rows of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recbole_pad.data.frequency import COLD, WARM, in_target_group
from recbole_pad.errors import InputError
from recbole_pad.evaluation.significance import holm, paired_bootstrap, seed_t_test
from recbole_pad.experiments.measures import Measure, Row

TESTED = tuple(
    Measure(protocol, group, "ndcg@10") for protocol in ("masked", "unmasked") for group in ("all", COLD, WARM)
)


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two rows on one measure.

    Attributes:
        dataset: its name.
        measure: what is compared.
        first: name of the row that is asked about.
        second: name of the other one.
        difference: mean of the first less that of the second.
        low: lower end of the 95 % interval of the difference (bootstrap over test rows).
        high: upper end.
        p_users: two-sided p-value of the bootstrap over test rows, whose values are means over seeds.
        p_seeds: two-sided p-value of the paired t-test over common seeds; None with fewer than two of them.
        p_users_corrected: after Holm's correction over all tests of the comparison.
        p_seeds_corrected: likewise.
    """

    dataset: str
    measure: Measure
    first: str
    second: str
    difference: float
    low: float
    high: float
    p_users: float
    p_seeds: float | None
    p_users_corrected: float = float("nan")
    p_seeds_corrected: float | None = None


def against_best_other(rows: Sequence[Row], reference: str, n_resamples: int = 10_000) -> list[PairedTest]:
    """For each dataset and measure of `TESTED`: the reference against the best other row, corrected together.

    Args:
        rows: rows of all datasets; the last phases only are compared.
        reference: label of the variant that is asked about.
        n_resamples: of the bootstrap.
    """
    last = [row for row in rows if row.is_last]
    pairs: list[tuple[Row, Row, Measure]] = []
    for dataset in dict.fromkeys(row.dataset for row in last):
        own = [row for row in last if row.dataset == dataset]
        first = next((row for row in own if row.label == reference), None)
        for measure in TESTED:
            others = [(row.mean(measure), row) for row in own if row.label != reference]
            known = [(mean, row) for mean, row in others if mean is not None]
            if first is not None and first.mean(measure) is not None and known:
                pairs.append((first, max(known, key=lambda pair: pair[0])[1], measure))
    return _corrected([_test(*pair, n_resamples) for pair in pairs])


def against_reference(rows: Sequence[Row], reference: Row, n_resamples: int = 10_000) -> list[PairedTest]:
    """Every other row against the reference, on the measures of `TESTED` with masked history, corrected together."""
    measures = [measure for measure in TESTED if measure.protocol == "masked"]
    pairs = [
        (row, reference, measure)
        for row in rows
        for measure in measures
        if row is not reference and row.mean(measure) is not None and reference.mean(measure) is not None
    ]
    return _corrected([_test(*pair, n_resamples) for pair in pairs])


def _test(first: Row, second: Row, measure: Measure, n_resamples: int) -> PairedTest:
    """Rows of one seed (a model with nothing to train) stand against each seed of the other."""
    has_several = len(first.results) > 1 and len(second.results) > 1
    seeds = sorted(set(first.results) & set(second.results)) if has_several else []
    one, other = (_gains_of_same_rows(row, first, measure, seeds or None) for row in (first, second))
    if measure.group != "all":
        is_member = in_target_group(next(iter(first.results.values())).frequency, measure.group)
        one, other = one[is_member], other[is_member]
    found = paired_bootstrap(one, other, n_resamples=n_resamples)
    by_seed = [dict(zip(row.results, row.values[measure], strict=True)) for row in (first, second)]
    p_seeds = seed_t_test(*([values[seed] for seed in seeds] for values in by_seed))
    return PairedTest(
        first.dataset, measure, first.name, second.name,
        found["difference"], found["low"], found["high"], found["p"], p_seeds,
    )  # fmt: skip


def _gains_of_same_rows(row: Row, first: Row, measure: Measure, seeds: Sequence[int] | None) -> NDArray[np.float64]:
    """A row's gains, refused unless it was tested on the same users and targets as the first."""
    own, expected = (next(iter(one.results.values())).ranks[one.phase] for one in (row, first))
    if not (np.array_equal(own.user, expected.user) and np.array_equal(own.target, expected.target)):
        raise InputError(f"{row.name} and {first.name} were tested on other users or targets of {row.dataset}")
    return row.user_gains(measure.protocol, measure.metric, seeds)


def _corrected(tests: list[PairedTest]) -> list[PairedTest]:
    users = holm([test.p_users for test in tests])
    with_seeds = [number for number, test in enumerate(tests) if test.p_seeds is not None]
    seeds = dict(zip(with_seeds, holm([float(tests[number].p_seeds or 0.0) for number in with_seeds]), strict=True))
    return [
        replace(test, p_users_corrected=users[number], p_seeds_corrected=seeds.get(number))
        for number, test in enumerate(tests)
    ]
