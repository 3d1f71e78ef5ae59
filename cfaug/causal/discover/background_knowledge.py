"""What is known of a graph before any data are asked: edges that must be, edges that cannot be, and an order of tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx

from cfaug.errors import UsageError, near


@dataclass(frozen=True)
class Background:
    """What is known beforehand.

    Args:
        forbidden: (cause, effect) pairs that are no edges.
        required: (cause, effect) pairs that are; a discovery keeps them, and they count as confirmed.
        tiers: groups of names, earlier ones first; nothing later causes anything earlier. Names in none are free.

    Raises:
        UsageError: a required edge that is forbidden or against the tiers, required edges in a cycle, a name in two tiers, an
            edge from a name to itself.
    """

    forbidden: tuple[tuple[str, str], ...] = ()
    required: tuple[tuple[str, str], ...] = ()
    tiers: tuple[tuple[str, ...], ...] = ()
    _tier: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forbidden", tuple((a, b) for a, b in self.forbidden))
        object.__setattr__(self, "required", tuple((a, b) for a, b in self.required))
        object.__setattr__(self, "tiers", tuple(tuple(t) for t in self.tiers))
        listed = [name for tier in self.tiers for name in tier]
        if twice := next((n for i, n in enumerate(listed) if n in listed[:i]), None):
            raise UsageError(f"discover: {twice!r} is in the tiers twice; name it once")
        object.__setattr__(self, "_tier", {name: i for i, tier in enumerate(self.tiers) for name in tier})
        for a, b in (*self.forbidden, *self.required):
            if a == b:
                raise UsageError(f"discover: {a} -> {b} joins {a!r} to itself; name two different attributes")
        for a, b in self.required:
            if (a, b) in self.forbidden:
                raise UsageError(f"discover: {a} -> {b} is both required and forbidden; remove one of the two")
            if self.forbids(a, b):
                raise UsageError(f"discover: {a} -> {b} is required, but the tiers put {b!r} before {a!r}; change one")
        graph: Any = nx.DiGraph(self.required)
        if not nx.is_directed_acyclic_graph(graph):
            cycle = [a for a, _ in nx.find_cycle(graph)]
            raise UsageError(f"discover: the required edges are a cycle: {' -> '.join([*cycle, cycle[0]])}; remove one")

    @classmethod
    def read(cls, forbidden: Sequence[str] = (), required: Sequence[str] = (), tiers: Sequence[Any] = ()) -> Background:
        """From texts, "a -> b" or "a -> b -> c", as a recipe has them; UsageError for a text that is no such thing."""
        return cls(_pairs("forbidden", forbidden), _pairs("required", required), tuple(tuple(t) for t in tiers))

    def forbids(self, a: str, b: str) -> bool:
        """Whether ``a -> b`` is excluded, by name or by tier."""
        return (a, b) in self.forbidden or self._tier.get(a, -1) > self._tier.get(b, len(self.tiers))

    def check(self, names: Sequence[str]) -> None:
        """UsageError, with near names, for one that is no attribute."""
        for name in [n for pair in (*self.forbidden, *self.required) for n in pair] + list(self._tier):
            if name not in names:
                raise UsageError(f"discover: the background knowledge names {name!r}; {near(name, names)}")

    def __bool__(self) -> bool:
        return bool(self.forbidden or self.required or self.tiers)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as a recipe writes it."""
        return {
            "forbidden": [f"{a} -> {b}" for a, b in self.forbidden],
            "required": [f"{a} -> {b}" for a, b in self.required],
            "tiers": [list(t) for t in self.tiers],
        }


def _pairs(which: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for text in texts:
        names = [part.strip() for part in str(text).split("->")]
        if len(names) < 2 or not all(names) or any(mark in text for mark in ("<", "?", ";")):
            raise UsageError(f'discover.{which}: expected a text such as "a -> b", got {text!r}; name cause and effect')
        found += pairwise(names)
    return tuple(found)
