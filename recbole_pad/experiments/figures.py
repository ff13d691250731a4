"""The figure of an experiment: a bar for each row, on all, cold and warm targets."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from recbole_pad.data.frequency import COLD, COLD_TEXT, WARM
from recbole_pad.errors import InputError
from recbole_pad.experiments.measures import Measure, Row

_PANELS = {"all targets": "all", f"{COLD} ({COLD_TEXT})": COLD, WARM: WARM}
_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
)  # by phase; Paul Tol's bright set, told apart by colour-blind readers


def require_matplotlib() -> None:
    """Refuse to begin what would end with a figure.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError('figures need matplotlib: pip install -e ".[experiments]" in the clone')


def draw(rows: Sequence[Row], title: str, form: str, path: Path) -> None:
    """Draw NDCG@10 (history masked) of each row: mean as a bar, standard deviation as a line, seeds as dots.

    Args:
        rows: in the order of the table, from the top.
        title: of the figure.
        form: ``png`` or ``svg``; the same rows give the same bytes.
        path: the file, which is overwritten.

    Raises:
        InputError: if matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "recbole-pad", "font.size": 9, "axes.spines.right": False, "axes.spines.top": False}
    ):
        figure = Figure(figsize=(9.5, 1.3 + 0.32 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        places = np.arange(len(rows))[::-1]
        phases = list(dict.fromkeys(row.phase for row in rows))
        for panel, (name, group) in zip(panels, _PANELS.items(), strict=True):
            measure = Measure("masked", group, "ndcg@10")
            means = [100 * (row.mean(measure) or 0.0) for row in rows]
            errors = [100 * (row.deviation(measure) or 0.0) for row in rows]
            colours = [_COLOURS[phases.index(row.phase) % len(_COLOURS)] for row in rows]
            panel.barh(places, means, xerr=errors, color=colours, alpha=0.75, height=0.7, error_kw={"lw": 1})
            for place, row in zip(places, rows, strict=True):
                values = [100 * value for value in row.values.get(measure, [])]
                if len(values) > 1:
                    panel.plot(values, [place] * len(values), ".", color="black", markersize=3)
            panel.set_title(name, fontsize=9, loc="left")
            panel.set_xlabel("NDCG@10, %")
            panel.grid(axis="x", alpha=0.3, linewidth=0.5)
            panel.set_axisbelow(True)
        panels[0].set_yticks(places, [row.name for row in rows])
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        figure.savefig(path, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
