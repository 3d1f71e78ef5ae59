"""Gives a direction to every edge that a discovery leaves open, so that a graph can be written, and says what was chosen.

A method finds a class of graphs that imply the same independences; only the directions that all of them share are known. The
remaining directions are chosen so that the result is in the class (Dor & Tarsi, 1992), and every choice is reported. The choice is
arbitrary, with one exception. An image is changed in its spurious attributes and keeps its label; so where the class has a graph
in which the target follows from no spurious attribute, that graph is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from cfaug.causal.discover.background_knowledge import Background

DIRECTED = ("->", "o->")
WORDS = {
    "--": "either direction fits",
    "o-o": "either direction or a hidden cause fits",
    "o->": "or a hidden cause of both",
    "-o": "its other end is open",
    "<->": "a hidden cause of both",
}


@dataclass(frozen=True)
class Edge:
    """One edge between ``a`` and ``b``; ``presence`` and ``orientation`` in [0, 1], None without resamples."""

    a: str
    kind: str
    """"->" a causes b, "--" either, "<->" hidden cause, "o->" b does not cause a, "o-o" nothing known, "-o" open at b."""
    b: str
    presence: float | None = None
    orientation: float | None = None
    required: bool = False

    def __str__(self) -> str:
        return f"{self.a} {self.kind} {self.b}"


def extension(
    names: Sequence[str],
    edges: Sequence[Edge],
    background: Background,
    target: str | None = None,
    spurious: Sequence[str] = (),
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """An acyclic direction for every edge but the "<->", and a sentence for each that the edges themselves do not give.

    Directed edges stay unless they close a cycle, which can happen in finite samples; the edges with the highest presence come
    first. The other edges are directed one sink after the other (Dor & Tarsi, 1992), without a new collider where that is possible.
    Where the ``target`` need not follow from one of ``spurious``, it does not, and one more sentence says so.
    """
    order: Any = nx.DiGraph()
    order.add_nodes_from(names)
    said: list[str] = []
    ranked = sorted(edges, key=lambda e: (not e.required, -(e.presence or 0.0), -(e.orientation or 0.0), e.a, e.b))
    for e in (e for e in ranked if e.kind in DIRECTED):
        if nx.has_path(order, e.b, e.a):
            order.add_edge(e.b, e.a)
            said.append(f"{e} would close a cycle and is written as {e.b} -> {e.a}")
        else:
            order.add_edge(e.a, e.b)
    free = {frozenset((e.a, e.b)): e for e in ranked if e.kind not in (*DIRECTED, "<->")}
    possible = order.copy()
    possible.add_edges_from(way for e in free.values() for way in ((e.a, e.b), (e.b, e.a)))
    at_risk = [s for s in spurious if s in order and target in order and nx.has_path(possible, s, target)]
    chosen = _directions(order, set(free), background, target if at_risk else None, spurious)
    order.add_edges_from(pair for pair, _ in chosen)
    hidden = any(e.kind == "<->" for e in edges)
    for (a, b), consistent in chosen:
        e = free[frozenset((a, b))]
        why = WORDS.get(e.kind, "the data do not say")
        # a <-> b in its place implies the same independences unless the arrowhead at a makes a collider x -> a <-> b
        if e.kind == "--" and consistent and not hidden and set(order.predecessors(a)) <= set(order.predecessors(b)):
            why += f", and so does {a} <-> {b}, a hidden cause of both"
        said.append(
            f"{e} is written as {a} -> {b}: {why}{'' if consistent else '; no choice keeps all that was found'}"
        )
    if at_risk and free and not any(nx.has_path(order, s, target) for s in at_risk):
        said.append(f"chosen so that the target {target} follows from no spurious attribute ({', '.join(at_risk)})")
    return sorted(order.edges), tuple(said)


def _directions(
    order: Any, pairs: set[frozenset[str]], background: Background, target: str | None, spurious: Sequence[str]
) -> list[tuple[tuple[str, str], bool]]:
    """A direction for each undirected pair, and whether it keeps all that was found.

    The target is taken as a sink only when no other node can be one. Then it is the only sink in every graph of the class, and the
    nodes that are left are its ancestors in all of them. So it has an ancestor here only if it has that ancestor in every graph.
    """
    directed, left, found = order.copy(), set(pairs), []
    rest = sorted(directed.nodes)

    def adjacent(a: str, b: str) -> bool:
        return directed.has_edge(a, b) or directed.has_edge(b, a) or frozenset((a, b)) in pairs

    def touching(node: str) -> list[str]:
        return sorted(m for pair in left if node in pair for m in pair if m != node)

    def sink(node: str) -> bool:
        ends = touching(node)
        around = [*ends, *(p for p in directed.predecessors(node) if p in rest)]
        return (
            not any(child in rest for child in directed.successors(node))
            and not any(background.forbids(n, node) for n in ends)
            and all(adjacent(n, m) for n in ends for m in around if n != m)
        )

    while left:
        # of several sinks the last by name is taken, so that earlier names become causes
        node = next((n for n in sorted(rest, key=lambda n: (n != target, n), reverse=True) if sink(n)), None)
        if node is not None:
            ways = [(other, node) for other in touching(node)]
            rest.remove(node)
        else:
            a, b = sorted(min(left, key=lambda pair: (target is None or target not in pair, sorted(pair))))
            ways = [(a, b) if _better(directed, a, b, background, target, spurious) else (b, a)]
        for way in ways:
            left.discard(frozenset(way))
            found.append((way, node is not None))
            directed.add_edge(*way)
    return found


def _better(directed: Any, a: str, b: str, background: Background, target: str | None, spurious: Sequence[str]) -> bool:
    """Whether a -> b rather than b -> a: first no cycle, then what is known beforehand, then the target's safety."""
    if nx.has_path(directed, b, a) or nx.has_path(directed, a, b):
        return not nx.has_path(directed, b, a)
    if background.forbids(a, b) or background.forbids(b, a):
        return not background.forbids(a, b)
    reaches = target is not None and nx.has_path(directed, b, target)
    return not (reaches and (b == target or any(s in directed and nx.has_path(directed, s, a) for s in spurious)))
