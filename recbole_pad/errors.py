"""One error class for everything a user can cure, shared with `dataset_prep`."""

from recbole_pad.dataset_prep.errors import InputError

__all__ = ["InputError"]
