"""The phases of PAD as data: which experts a phase trains, and where they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: the word in config key `phases`.
        experts: the experts that it trains and scores with; None for all of config key `experts`, gated.
        aligns: the expert whose text vectors the alignment loss moves towards its ID vectors; None: no such loss.
    """

    name: str
    experts: tuple[str, ...] | None
    aligns: str | None = None

    @property
    def is_gated(self) -> bool:
        """Whether the phase scores with several experts, mixed by the gate."""
        return self.experts is None

    def members(self, configured: Sequence[str]) -> tuple[str, ...]:
        """The experts of this phase, given those of the config."""
        return tuple(configured) if self.experts is None else self.experts


PHASES = {
    phase.name: phase
    for phase in (
        Phase("pretrain", experts=("rec",)),
        Phase("align", experts=("align",), aligns="align"),
        Phase("finetune", experts=None),
    )
}
EXPERTS = ("rec", "align", "llm", "match", "markov")
WITHOUT_TEXT = frozenset({"rec", "markov"})  # experts that read no text
STARTS_FROM = {"align": "rec"}  # an expert that starts as a copy of a trained one: its ID vectors and its encoder
