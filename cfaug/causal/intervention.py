"""An intervention as a value: do(background="water") says what is done, not on which row.

    do(x=v)               x := v                           cuts x from its causes
    do(x=shift(d))        x := f(parents, u) + d           keeps its causes: the mechanism's own answer, moved
    do(x=scale(s))        x := s f(parents, u)
    do(x=flip())          x := the other of its two values
    do(x=resample())      x := a draw from its marginal distribution among the rows the SCM was fitted on; cuts
    do(x=uniform())       x := a draw from its observed values, or its observed range, uniformly; cuts
    do(x=None)            x is hidden: it has no value any more, and the image shows none; cuts

Several attributes at once are one intervention. ``do()`` is the null intervention: acting with it changes nothing, and a
counterfactual under it is a reconstruction. An intervention is hashable, printable and JSON; whether its attributes and
values exist is for a schema to say (``Intervention.check``). The draws of the last two belong to the row's seed and are
made by the SCM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cfaug.data.attribute import Attribute
from cfaug.data.schema import IMAGE, Schema
from cfaug.errors import UsageError, shown

Value = str | int | float | None
"""None: hidden."""
CHANGES = ("shift", "scale", "flip", "resample", "uniform")
HARD = ("resample", "uniform")
"""The changes that cut an attribute from its causes, as a plain value does."""


@dataclass(frozen=True, order=True)
class Change:
    """What is done to an attribute other than setting it; made by ``shift``, ``scale``, ``flip``, ``resample``, ``uniform``."""

    kind: str
    amount: float | None = None

    def __str__(self) -> str:
        return f"{self.kind}({'' if self.amount is None else f'{self.amount:g}'})"

    def to_json(self) -> dict[str, float | bool]:
        """{"shift": 0.5}, or {"flip": true} where there is no amount."""
        return {self.kind: True if self.amount is None else self.amount}

    def check(self, attribute: Attribute) -> Change:
        """Self; UsageError where an attribute of this kind cannot be changed in this way."""
        where = f"do({attribute.name}={self})"
        kinds = {"shift": ("ordinal", "continuous"), "scale": ("continuous",), "flip": ("categorical", "ordinal")}
        if attribute.kind not in kinds.get(self.kind, (attribute.kind,)):
            raise UsageError(
                f"{where}: {attribute.name!r} is {attribute.kind}, expected {' or '.join(kinds[self.kind])}; set a value instead"
            )
        if self.kind == "flip" and len(attribute.categories) != 2:
            raise UsageError(
                f"{where}: expected an attribute of two values, got {len(attribute.categories)}; use uniform() or set a value"
            )
        if self.kind == "shift" and attribute.kind == "ordinal" and self.amount != int(self.amount or 0):
            raise UsageError(f"{where}: expected a whole number of ranks of an ordinal attribute, got {self.amount:g}")
        return self


def shift(amount: float) -> Change:
    """Add ``amount`` (the attribute's unit; whole ranks of an ordinal one, which stops at its ends)."""
    return Change("shift", _amount("shift", amount))


def scale(factor: float) -> Change:
    """Multiply by ``factor``, which is not 0."""
    if (number := _amount("scale", factor)) == 0:
        raise UsageError("scale(0): expected a factor other than 0; write do(x=0) to set every row to 0")
    return Change("scale", number)


def flip() -> Change:
    """The other value of an attribute that has two."""
    return Change("flip")


def resample() -> Change:
    """A fresh draw from the attribute's marginal distribution, independent of everything else in the row."""
    return Change("resample")


def uniform() -> Change:
    """A fresh draw, uniform over the values that occur, or between the smallest and the largest number that does."""
    return Change("uniform")


def _amount(kind: str, amount: Any) -> float:
    wrong = isinstance(amount, bool) or not isinstance(amount, int | float | np.integer | np.floating)
    if wrong or not math.isfinite(amount):
        raise UsageError(f"{kind}({amount!r}): expected a finite number")
    return float(amount)


@dataclass(frozen=True)
class Intervention:
    """What do(...) returns: (attribute, value or change) pairs, sorted by attribute. Equal pairs are equal interventions."""

    items: tuple[tuple[str, Value | Change], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every attribute that is intervened on."""
        return tuple(name for name, _ in self.items)

    @property
    def assignments(self) -> Mapping[str, Value]:
        """Attribute -> value, read-only, of those that are set to a value."""
        return MappingProxyType({name: value for name, value in self.items if not isinstance(value, Change)})

    @property
    def changes(self) -> Mapping[str, Change]:
        """Attribute -> change, read-only, of those that are changed in a different way."""
        return MappingProxyType({name: value for name, value in self.items if isinstance(value, Change)})

    @property
    def is_null(self) -> bool:
        """True for do()."""
        return not self.items

    def check(self, schema: Schema) -> Intervention:
        """The same intervention with canonical values; UsageError for an unknown attribute or a value outside it."""
        return Intervention(
            tuple(
                (name, v.check(schema[name]) if isinstance(v, Change) else check_value(schema, name, v))
                for name, v in self.items
            )
        )

    def __str__(self) -> str:
        return f"do({', '.join(f'{name}={value}' for name, value in self.items)})"

    def to_json(self) -> dict[str, Any]:
        """Attribute -> value, or {"shift": 0.5}; {} for do()."""
        return {name: v.to_json() if isinstance(v, Change) else v for name, v in self.items}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Intervention:
        """The inverse of ``to_json``."""
        return do(data)


def do(mapping: Mapping[str, Any] | None = None, /, **values: Any) -> Intervention:
    """do(background="water", age=shift(5)), or do({"hair colour": "black"}) for names that are not identifiers.

    Values are text, finite numbers, changes or None; UsageError for anything else, for ``image``, and for a name given twice.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise UsageError(f"do(...): expected a mapping of attributes to values, or keywords, got {shown(mapping)}")
    given = dict(mapping or {})
    for name, value in values.items():
        if name in given:
            raise UsageError(f"do(...): expected every attribute once, got {name!r} twice; give it once")
        given[name] = value
    return Intervention(tuple(sorted(((_name(n), _value(n, v)) for n, v in given.items()), key=lambda pair: pair[0])))


def check_value(schema: Schema, name: str, value: Value) -> str | float | None:
    """The canonical form of a value that an attribute may be set to; UsageError for any other."""
    if value is None and name != schema.target:
        schema[name]  # must be known
        return None
    return schema.check_value(name, value)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UsageError(f"do(...): expected the name of an attribute, got {name!r}")
    if name == IMAGE:
        raise UsageError("do(...): expected attributes, got image, which follows from its attributes; set those")
    return name


def _value(name: str, value: Any) -> Value | Change:
    if value is None or isinstance(value, Change):
        return value
    if isinstance(value, Mapping):  # as to_json writes a change
        return _change(name, value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value)  # as the table's canonical text has it
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"do({name}={value}): expected a finite number or a text")
    if not isinstance(value, str | int | float):
        raise UsageError(
            f"do({name}={value!r}): expected a text, a number, a change or None, got {type(value).__name__}"
        )
    return value


def _change(name: str, data: Mapping[str, Any]) -> Change:
    makers = {"shift": shift, "scale": scale}
    (kind, amount), *rest = [*data.items()] or [("nothing", None)]
    if not rest and kind in makers:
        return makers[kind](amount)
    if rest or kind not in CHANGES or amount is not True:
        raise UsageError(
            f"do({name}={dict(data)!r}): expected one of {', '.join(CHANGES)}, such as {{'shift': 0.5}} or {{'flip': true}}"
        )
    return Change(kind)
