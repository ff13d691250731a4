"""RecBole's own slow paths replaced by faster ones with equal results, each behind a key (`properties/protocol/`).

For every sequential model, PAD or stock. A config without the key keeps RecBole's code.
"""

from __future__ import annotations


def install() -> None:
    """Put the replacements into RecBole's classes. Idempotent."""
