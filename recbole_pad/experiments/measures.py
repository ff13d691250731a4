"""What is read off a run's result.json, and its spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_pad.data.frequency import TARGET_GROUPS
from recbole_pad.evaluation.metrics import KS, gains, merged
from recbole_pad.experiments.cells import CellResult

PROTOCOLS = ("masked", "unmasked")
METRICS = tuple(f"{name}@{k}" for name in ("hit", "ndcg", "mrr") for k in KS)


class Measure(NamedTuple):
    """One number of a run.

    Attributes:
        protocol: ``masked`` or ``unmasked`` history.
        group: the targets: ``all``, one of `TARGET_GROUPS`, ``frequency ...``, ``bin ...``, ``in_set`` or ``withheld``
            (`cold_split`).
        metric: for example ``ndcg@10``.
    """

    protocol: str
    group: str
    metric: str


def measures_of(entry: Mapping[str, Any]) -> dict[Measure, float]:
    """All numbers of one phase and split of a result.json; groups without targets are left out."""
    found: dict[Measure, float] = {}
    for protocol in PROTOCOLS:
        if protocol not in entry:
            continue
        for group, metrics in _groups(entry[protocol]).items():
            found.update({Measure(protocol, group, name): metrics[name] for name in METRICS if name in metrics})
    return found


def _groups(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    frequency = report["frequency"]
    split = report.get("cold_split", {})
    return {
        "all": report["all"],
        **{group: merged([frequency[name] for name in names]) for group, names in TARGET_GROUPS.items()},
        **{f"frequency {name}": metrics for name, metrics in frequency.items()},
        **{f"bin {name}": metrics for name, metrics in report["bins"].items()},
        **{new: split[name] for name, new in (("in_set", "in_set"), ("cold", "withheld")) if name in split},
    }


@dataclass(frozen=True)
class Row:
    """A phase of a variant on a dataset, over seeds.

    Attributes:
        dataset: its name.
        label: the variant.
        phase: the phase; ``train`` for models other than PAD.
        results: seed -> the run.
        values: measure -> its value for each seed, in the order of `results`.
        is_last: whether it is the run's last phase, the model that is used.
    """

    dataset: str
    label: str
    phase: str
    results: Mapping[int, CellResult]
    values: Mapping[Measure, list[float]]
    is_last: bool

    @property
    def name(self) -> str:
        """The label, with the phase where it is not the last."""
        return self.label if self.is_last else f"{self.label}, {self.phase}"

    @property
    def seconds(self) -> list[float]:
        """Training time up to and with this phase, for each seed; phases from a cache count what they took."""
        times = []
        for result in self.results.values():
            phases = list(result.report["phases"])
            used = phases[: phases.index(self.phase) + 1]
            times.append(sum(result.report["phases"][phase]["seconds"] for phase in used))
        return times

    @property
    def epochs(self) -> list[int]:
        """Epochs that this phase was trained, for each seed."""
        return [result.report["phases"][self.phase]["epochs"] for result in self.results.values()]

    def mean(self, measure: Measure) -> float | None:
        """Mean over seeds; None where there is no such target."""
        return float(np.mean(self.values[measure])) if measure in self.values else None

    def deviation(self, measure: Measure) -> float | None:
        """Standard deviation over seeds (n - 1); None with one seed."""
        values = self.values.get(measure, [])
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def user_gains(self, protocol: str, metric: str, seeds: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Each test row's value of a metric, mean over seeds (all, or the given ones): shape (n,)."""
        chosen = [result for seed, result in self.results.items() if seeds is None or seed in seeds]
        own = [gains(getattr(result.ranks[self.phase], protocol), metric) for result in chosen]
        return np.mean(own, axis=0)


def rows_of(dataset: str, label: str, results: Mapping[int, CellResult]) -> list[Row]:
    """The rows of one variant on test data: one for each phase that all its runs have."""
    reports = [result.report for result in results.values()]
    last = list(reports[0]["phases"])[-1]
    rows = []
    for phase in reports[0]["phases"]:
        each = [measures_of(report["phases"][phase].get("test", {})) for report in reports]
        common = [measure for measure in each[0] if all(measure in values for values in each)]
        values = {measure: [values[measure] for values in each] for measure in common}
        rows.append(Row(dataset, label, phase, dict(results), values, phase == last))
    return rows
