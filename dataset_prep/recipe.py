"""Which interactions are kept: a recipe, and the ones that have a name."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .pick import pick

__all__ = ["DUPLICATES", "PRESETS", "Recipe"]

DUPLICATES: dict[str, tuple[tuple[str, ...], ...]] = {  # columns in which rows are equal; of those the earliest is kept
    "keep": (),
    "exact": (("user", "item", "time"),),
    "pair": (("user", "item"),),
}


@dataclass(frozen=True)
class Recipe:
    """Filters, in the order in which they are done.

    Attributes:
        duplicates: keep: all rows; exact: one row per user, item and time; pair: one per user and item, the earliest.
        min_rating: rows with a smaller rating, or none, are dropped.
        user_core: users with fewer rows are dropped ...
        item_core: ... and items with fewer; both again until nobody is left to drop.
        longest: users with more rows than that ...
        kept: ... keep their last `kept`.
    """

    duplicates: str = "exact"
    min_rating: float | None = None
    user_core: int = 1
    item_core: int = 1
    longest: int | None = None
    kept: int = 0

    def __post_init__(self) -> None:
        pick(DUPLICATES, self.duplicates, "duplicates")
        for name in ("user_core", "item_core"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.longest is None and self.kept:
            raise InputError(f"kept: {self.kept} is of users with more rows than longest; set longest, too")
        if self.longest is not None and not 1 <= self.kept <= self.longest:
            raise InputError(f"kept must be from 1 to longest ({self.longest}), not {self.kept}")


PRESETS: dict[str, Recipe] = {
    # The published PAD code, dataset/preprocessing/clean.py: ratings of 4 and 5, users with 5 such rows (items are not
    # filtered), histories longer than 23 cut to the last 22. It removes no duplicates.
    "paper": Recipe(duplicates="keep", min_rating=4, user_core=5, longest=23, kept=22),
    # The paper's rules for MIND: click sequences of at least 5, the last 23.
    "paper-mind": Recipe(duplicates="pair", user_core=5, longest=23, kept=23),
    # What most sequential recommendation papers use: every review is positive, 5-core on users and items.
    "5core": Recipe(duplicates="exact", user_core=5, item_core=5),
    "all": Recipe(duplicates="keep"),
}
