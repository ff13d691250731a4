"""NDCG@10 by whether the last step goes up or down in item id: what part of a gain lies in steps of one day.

    recbole-pad compare --models PAD,IDTextSum --datasets amazon_beauty --data_path=DIR
    python benchmarks/step_order.py --dataset amazon_beauty --data_path DIR cells/amazon_beauty/*

Amazon's 2014 files keep the order of their item ids (ASINs) where the dates of a user's reviews tie, so 7 of 10 last
steps go up in them, 5 by chance. All steps within a day go up; those between days go either way. So a gain in steps up
alone is one in purchases of a day, which are alike, or one of a model that has learned the order: on a copy by
`shuffled_histories.py` no model can, and what is left there is the former. Test rows, history masked, mean over the
seeds that a cell has; the first model against each other one, 95 % interval by paired bootstrap over rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recbole.data import create_dataset, data_preparation

import recbole_pad  # noqa: F401 - registers PAD
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.metrics import gains
from recbole_pad.evaluation.rank_files import RANKS_FILE, read_ranks
from recbole_pad.evaluation.significance import paired_bootstrap
from recbole_pad.model.positions import newest_items
from recbole_pad.preflight import settled_config


def last_ranks(cell: Path) -> list[Ranks]:
    """The ranks of the last phase, of each finished seed of a cell's folder."""
    return [list(read_ranks(file).values())[-1] for file in sorted(cell.glob(f"seed*/*/{RANKS_FILE}"))]


def goes_up(dataset: str, data_path: str, rows: Ranks) -> NDArray[np.bool_]:
    """Whether the id of each row's target sorts behind that of the item before it: shape (n_rows,)."""
    config = settled_config("Popularity", dataset, None, {"data_path": data_path, "show_progress": False})
    whole = create_dataset(config)
    _, _, test = data_preparation(config, whole)
    feat = test.dataset.inter_feat
    history, length = feat[whole.iid_field + config["LIST_SUFFIX"]], feat[config["ITEM_LIST_LENGTH_FIELD"]]
    before = newest_items(history, length).numpy()
    order = np.lexsort((feat[whole.iid_field].numpy(), feat[whole.uid_field].numpy()))
    if not np.array_equal(feat[whole.iid_field].numpy()[order], rows.target):
        raise SystemExit(f"the runs were not made on {data_path}/{dataset}")
    tokens = whole.field2id_token[whole.iid_field].astype(str)
    return np.asarray(tokens[rows.target] > tokens[before[order]])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", type=Path, help="folders of models below the cells of one dataset")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True)
    args = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    ranks = {cell.name: found for cell in args.cells if (found := last_ranks(cell))}
    values = {name: np.mean([gains(one.masked, "ndcg@10") for one in own], axis=0) for name, own in ranks.items()}
    rows = next(iter(ranks.values()))[0]
    up = goes_up(args.dataset, args.data_path, rows)
    groups = {"all": np.ones_like(up), "up": up, "down": ~up}
    print("NDCG@10, %:", ", ".join(f"{name} {int(mask.sum()):,} rows" for name, mask in groups.items()))
    first = next(iter(values))
    for name, own in values.items():
        cells = []
        for mask in groups.values():
            found = paired_bootstrap(values[first][mask], own[mask])
            gap = [100 * found[key] for key in ("difference", "low", "high")]
            less = "" if name == first else " ({:+.2f} [{:+.2f}, {:+.2f}])".format(*gap)
            cells.append(f"{100 * own[mask].mean():.2f}{less}")
        print(f"{name} ({len(ranks[name])} seeds): " + " | ".join(cells))
    print(f"in brackets: {first} less that model, with a 95 % interval")


if __name__ == "__main__":
    main()
