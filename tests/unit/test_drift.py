import numpy as np
import pytest

from recbole_pad.data.drift import drift_weights
from recbole_pad.data.frequency import FREQUENCY_GROUPS
from recbole_pad.data.histories import Histories


def histories(*sequences: list[int]) -> Histories:
    users = np.concatenate([[user + 1] * len(items) for user, items in enumerate(sequences)])
    return Histories.from_sorted(users.astype(np.int64), np.concatenate(sequences).astype(np.int64), len(sequences) + 1)


def test_drift_is_the_ratio_of_group_counts_two_steps_and_one_step_after():
    # 30 users: item 1 six times in each history, then item 1 as "validation" and a new item as "test" target
    train = histories(*[[1] * 6 + [1, 2 + user] for user in range(30)])
    weights = drift_weights(train, 40)
    unseen, popular = FREQUENCY_GROUPS.index("0"), FREQUENCY_GROUPS.index(">100")
    assert weights[unseen] == pytest.approx((30 + 20) / (0 + 20))  # 20: the smoothing of either count
    assert weights[popular] == pytest.approx((0 + 20) / (30 + 20))
    assert np.delete(weights, [unseen, popular]) == pytest.approx(1.0)


def test_nothing_drifts_where_both_steps_look_alike():
    train = histories(*[[1] * 6 + [2 + user, 40 + user] for user in range(30)])
    assert drift_weights(train, 80) == pytest.approx(np.ones(len(FREQUENCY_GROUPS)))


def test_users_with_fewer_than_three_items_do_not_count():
    assert drift_weights(histories([1], [1, 2], [3]), 5) == pytest.approx(np.ones(len(FREQUENCY_GROUPS)))
