"""An intervention as a value: do(background="water") says what is set, and nothing about when or on what.

``do()`` is the null intervention: acting with it changes nothing, and a counterfactual under it is a
reconstruction. An intervention is hashable, printable and JSON; whether its attributes and values exist is for a
schema to say (``Intervention.check``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cfaug.data.attributes import IMAGE, Schema
from cfaug.errors import UsageError

Value = str | int | float


@dataclass(frozen=True)
class Intervention:
    """What do(...) returns: (attribute, value) pairs, sorted by attribute. Equal assignments are equal values."""

    items: tuple[tuple[str, Value], ...] = ()

    @property
    def assignments(self) -> Mapping[str, Value]:
        """Attribute -> value, read-only."""
        return MappingProxyType(dict(self.items))

    @property
    def is_null(self) -> bool:
        """True for do()."""
        return not self.items

    def check(self, schema: Schema) -> Intervention:
        """The same intervention with canonical values; UsageError for an unknown attribute or a value outside it."""
        return Intervention(tuple((name, schema.check_value(name, value)) for name, value in self.items))

    def __str__(self) -> str:
        return f"do({', '.join(f'{name}={value}' for name, value in self.items)})"

    def to_json(self) -> dict[str, Value]:
        """Attribute -> value; {} for do()."""
        return dict(self.items)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Intervention:
        """The inverse of ``to_json``."""
        return do(data)


def do(mapping: Mapping[str, Any] | None = None, /, **values: Any) -> Intervention:
    """do(background="water"), or do({"hair colour": "black"}) for names that are no identifiers.

    Values are text or finite numbers; UsageError for anything else, for ``image``, and for a name given twice.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise UsageError(f"do(...) takes a mapping of attributes to values, or names, got {mapping!r}")
    given = dict(mapping or {})
    for name, value in values.items():
        if name in given:
            raise UsageError(f"do(...): {name!r} is given twice; give it once")
        given[name] = value
    return Intervention(tuple(sorted((_name(n), _value(n, v)) for n, v in given.items())))


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UsageError(f"do(...): an attribute's name is a non-empty text, got {name!r}")
    if name == IMAGE:
        raise UsageError("do(image=...) is not an intervention here: the image follows from its attributes; set those")
    return name


def _value(name: str, value: Any) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value)  # as the table's canonical text has it
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"do({name}={value}): expected a finite number or a text")
    if not isinstance(value, str | int | float):
        raise UsageError(f"do({name}={value!r}): expected a text or a number, got {type(value).__name__}")
    return value
