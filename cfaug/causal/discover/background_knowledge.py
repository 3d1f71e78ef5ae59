"""What a user knows of a graph before any data are looked at: required edges, forbidden edges, and an order of tiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx

from cfaug.errors import UsageError, near


@dataclass(frozen=True)
class Background:
    """What a user knows beforehand.

    Args:
        forbidden: (cause, effect) pairs that must not be edges.
        required: (cause, effect) pairs that must be edges; every discovery has them, and they count as confirmed.
        tiers: groups of names, earlier ones first; no name causes a name of an earlier tier. A name in no tier is free.

    Raises:
        UsageError: a required edge that is forbidden or against the tiers, required edges in a cycle, a name in two tiers, an
            edge from a name to itself.
    """

    forbidden: tuple[tuple[str, str], ...] = ()
    required: tuple[tuple[str, str], ...] = ()
    tiers: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for key in ("forbidden", "required", "tiers"):  # lists would compare unequal to the pairs asked about
            object.__setattr__(self, key, tuple(tuple(names) for names in getattr(self, key)))
        listed = [name for tier in self.tiers for name in tier]
        if twice := next((n for i, n in enumerate(listed) if n in listed[:i]), None):
            raise UsageError(f"discover.tiers: expected every name once, got {twice!r} twice; name it once")
        for a, b in (*self.forbidden, *self.required):
            if a == b:
                raise UsageError(f"discover: expected two different attributes, got {a} -> {b}; name cause and effect")
        for a, b in self.required:
            if self.forbids(a, b):
                raise UsageError(
                    f"discover.required: expected edges that nothing forbids, got {a} -> {b}, which forbidden or tiers exclude; remove one of the two"
                )
        graph: Any = nx.DiGraph(self.required)
        if not nx.is_directed_acyclic_graph(graph):
            cycle = [a for a, _ in nx.find_cycle(graph)]
            raise UsageError(
                f"discover.required: expected edges without a cycle, got {' -> '.join([*cycle, cycle[0]])}; remove one"
            )

    @classmethod
    def read(
        cls, forbidden: Sequence[str] = (), required: Sequence[str] = (), tiers: Iterable[Sequence[str]] = ()
    ) -> Background:
        """From texts, "a -> b" or "a -> b -> c", as a recipe has them; UsageError for any other text."""
        return cls(_pairs("forbidden", forbidden), _pairs("required", required), tuple(tuple(t) for t in tiers))

    def forbids(self, a: str, b: str) -> bool:
        """Whether ``a -> b`` is excluded, by name or by tier."""
        tier = {name: i for i, names in enumerate(self.tiers) for name in names}
        return (a, b) in self.forbidden or tier.get(a, -1) > tier.get(b, len(self.tiers))

    def check(self, names: Sequence[str]) -> None:
        """UsageError, with near names, for a name that is not an attribute."""
        for name in (n for group in (*self.forbidden, *self.required, *self.tiers) for n in group):
            if name not in names:
                raise UsageError(
                    f"discover: expected attributes as background knowledge, got {name!r}; {near(name, names)}"
                )

    def to_json(self) -> dict[str, Any]:
        """Plain data, as a recipe writes it."""
        texts = {key: [f"{a} -> {b}" for a, b in getattr(self, key)] for key in ("forbidden", "required")}
        return {**texts, "tiers": [list(t) for t in self.tiers]}


def _pairs(which: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for text in texts:
        names = [part.strip() for part in str(text).split("->")]
        if len(names) < 2 or not all(names) or any(mark in text for mark in "<?;"):
            raise UsageError(f'discover.{which}: expected a text such as "a -> b", got {text!r}; name cause and effect')
        found += pairwise(names)
    return tuple(found)
