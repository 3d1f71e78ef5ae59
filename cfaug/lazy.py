"""Public names of a package that are loaded at their first use, so that importing the package is light."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__, __dir__, __all__ = lazy(__name__, {"schema": "Attribute Schema", ...})`` of a package's ``__init__``.

    Args:
        package: the package's name.
        homes: module below the package -> the public names that live there, separated by spaces.

    The same names stand once more under ``if TYPE_CHECKING``, as ``from package.schema import Schema as Schema``, because type
    checkers do not run code; tests/test_typing.py compares the two.
    """
    home = {name: f"{package}.{module}" for module, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)  # the second use finds it without coming here
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return load, names, sorted(home)
