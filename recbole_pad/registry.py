"""The one resolver: a config word selects an entry of a table; shared with `dataset_prep`."""

from recbole_pad.dataset_prep.pick import nearest, pick

__all__ = ["nearest", "pick"]
