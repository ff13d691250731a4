"""A copy of a dataset in which the order of training histories says nothing: is a gain one of the order of files?

    python benchmarks/shuffled_histories.py --dataset amazon_toys --data_path DIR --output shuffled
    recbole-pad compare --models PAD,IDTextSum --datasets amazon_toys --data_path=shuffled --name shuffled-amazon_toys

Amazon's 2014 files keep the order of item ids (ASINs) where the dates of a user's reviews tie, and hold no dates: which
neighbours tie is not known. So all but the last two interactions of each user (leave-one-out's validation and test
targets) are put into a random order. No model can then learn that a step goes up in item ids, nor any true order. The
time column of the copy is the place in the history. The .item file is copied as it is, so text vectors are found.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

HELD_OUT = 2


def shuffled(rows: pd.DataFrame, user: str, time: str, seed: int) -> pd.DataFrame:
    """The rows, all but the last two of each user in random order; `time` is the place in the history."""
    rows = rows.sort_values([user, time], kind="stable").reset_index(drop=True)
    back = rows.groupby(user).cumcount(ascending=False)
    draw = np.random.default_rng(seed).random(len(rows))
    key = np.where(back < HELD_OUT, 2.0 - back, draw)  # the last two stay last, in their order
    rows = rows.iloc[np.lexsort((key, rows[user]))].reset_index(drop=True)
    return rows.assign(**{time: rows.groupby(user).cumcount()})


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of datasets for the copy")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    source, folder = args.data_path / args.dataset, args.output / args.dataset
    if folder.resolve() == source.resolve():
        raise SystemExit(f"output: {args.output} holds the dataset itself; name another folder")
    rows = pd.read_csv(source / f"{args.dataset}.inter", sep="\t", dtype=str, keep_default_na=False)
    columns = {column.partition(":")[0]: column for column in rows.columns}
    time = columns["timestamp"]
    rows[time] = rows[time].astype(float)
    folder.mkdir(parents=True, exist_ok=True)
    made = shuffled(rows, columns["user_id"], time, args.seed)
    made.to_csv(folder / f"{args.dataset}.inter", sep="\t", index=False)
    shutil.copyfile(source / f"{args.dataset}.item", folder / f"{args.dataset}.item")
    print(f"{folder}: {len(made):,} interactions of {made[columns['user_id']].nunique():,} users")


if __name__ == "__main__":
    main()
