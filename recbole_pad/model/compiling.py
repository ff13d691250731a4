"""Config key `compile`: the backbones' RecBole models through `torch.compile`."""

from __future__ import annotations

import os
import shutil
from typing import Any

from torch import nn

from recbole_pad.errors import InputError

_COMPILERS = ("g++", "clang++", "c++", "cl")


def require_compiler() -> None:
    """Refuse where torch.compile would fail in the first step.

    Raises:
        InputError: if there is no C++ compiler.
    """
    own = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([own] if own else _COMPILERS)):
        looked = (
            f"the one that CXX names, {own!r}, is not there" if own else f"none of {', '.join(_COMPILERS)} is there"
        )
        raise InputError(f"compile: True needs a C++ compiler, but {looked}; install one, or set compile: False")


def compile_in_place(core: nn.Module, **options: Any) -> None:
    """Compile a module's calls, for rows and items of any number; parameters, their names and copies stay as they are.

    Args:
        core: the module.
        options: further arguments of `torch.compile`.

    Raises:
        InputError: if there is no C++ compiler.
    """
    require_compiler()
    core.compile(dynamic=True, **options)
