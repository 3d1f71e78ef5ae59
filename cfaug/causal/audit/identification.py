"""Which effects and counterfactuals the data decide, given the graph, and which rest on a further assumption.

1. The effect: is p(D | do(A)) a functional of p(observed attributes)? The answer is exact for every graph with ``<->`` (Tian and
   Pearl 2002; complete by Huang and Valtorta 2006, Shpitser and Pearl 2006). What blocks an effect is called a hedge.
2. The row's counterfactual, from mechanisms fitted as D given its parents. For every attribute N on a path from A to D,

       u_N _||_ parents that do(A) moves | parents that stay, and noises that the parents tell

   is sufficient for p(N | parents) to be its mechanism. What is then assumed about N depends on the kind of its mechanism.

All of this takes the user's graph for true and says nothing about how well a mechanism was estimated. The derivation
is in ``docs/concepts/identification.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cfaug.causal.graph import CausalGraph
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.data.schema import IMAGE
from cfaug.errors import UsageError

STATUSES = ("unchanged", "identified", "assumed", "convention", "not_identified")
"""What can be said of a counterfactual, from the strongest to the weakest."""

_ADDITIVE = {"additive_noise": "a function", "linear": "a linear function"}


def hedge(graph: CausalGraph, acts: Collection[str], outcomes: Collection[str]) -> tuple[str, ...] | None:
    """None when p(outcomes | do(acts)) is identifiable from the observed attributes, else the attributes that block it.

    Sound and complete (Shpitser and Pearl 2006). Raises UsageError for a name that the graph does not have, ``image``, no
    outcome, and an outcome that is acted on.
    """
    acts, outcomes = set(acts), set(outcomes)
    for name in (*acts, *outcomes):
        if name not in graph.attributes:
            graph.parents(name)  # says which name is unknown
            raise UsageError(
                "expected attributes, got image, whose counterfactuals are not identifiable; name attributes"
            )
    if not outcomes or acts & outcomes:
        raise UsageError(
            f"expected outcomes other than what is acted on ({', '.join(sorted(acts))}), got {', '.join(sorted(outcomes))}"
        )
    whole = _upstream(graph, outcomes, set(graph.attributes))
    needed = _upstream(graph, outcomes, whole - acts)
    for district in map(set, graph.districts(needed)):
        blocked = _blocked(graph, district, _district_of(graph, district, whole))
        if blocked is not None:
            return tuple(sorted(blocked))
    return None


def _blocked(graph: CausalGraph, inner: set[str], outer: set[str]) -> set[str] | None:
    """Tian's Identify: is Q[inner] a functional of Q[outer], both districts, inner in outer? None if so, else where it stops."""
    while True:
        closed = _upstream(graph, inner, outer)
        if closed == inner:
            return None  # Q[inner]: sum the rest out of Q[outer]
        if closed == outer:
            return outer
        outer = _district_of(graph, inner, closed)


def _upstream(graph: CausalGraph, nodes: Iterable[str], among: set[str]) -> set[str]:
    """``nodes`` and their ancestors by paths inside ``among``."""
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [p for p in graph.parents(node) if p in among]
    return found


def _district_of(graph: CausalGraph, nodes: set[str], among: set[str]) -> set[str]:
    """``nodes``, all of them in ``among``, and the attributes that ``<->`` inside ``among`` joins to any of them."""
    return {n for district in graph.districts(among) if nodes & {*district} for n in district}


def confounders(graph: CausalGraph, name: str) -> tuple[str, ...]:
    """The ancestors of ``name`` that share a hidden cause with it."""
    tied = [b if a == name else a for a, b in graph.bidirected if name in (a, b)]
    return tuple(n for n in tied if n in graph.ancestors(name))


def moved_with_noise(graph: CausalGraph, name: str, act: str, invertible: Collection[str] = ()) -> tuple[str, ...]:
    """The parents of ``name`` that do(act) moves and on which its noise depends, given the rest; empty if all is well.

    The rest are the parents that stay, and the noises of moved parents that are ``invertible`` and have all their own parents
    among those of ``name``. Noises enter the graph as nodes that take over every ``<->``, and m-separation decides.
    """
    if not confounders(graph, name):
        return ()
    reached, parents = {act, *graph.descendants(act)}, graph.parents(name)
    told = [p for p in parents if p in reached and p != act and p in invertible and {*graph.parents(p)} <= {*parents}]
    longest = max(graph.attributes, key=len)
    noise = {
        n: f"{longest}'{k}" for k, n in enumerate((name, *told))
    }  # longer than every attribute's name, hence unused
    pieces = [*graph.attributes, *(f"{u} -> {n}" for n, u in noise.items()), *(f"{a} -> {b}" for a, b in graph.edges)]
    pieces += [f"{noise.get(a, a)} <-> {noise.get(b, b)}" for a, b in graph.bidirected]
    with_noises = CausalGraph("; ".join(pieces))
    given = [p for p in parents if p not in reached] + [noise[p] for p in told]
    moved = [p for p in parents if p in reached and p not in told]
    return tuple(p for p in moved if not with_noises.separated(noise[name], p, given))


def recomputed(graph: CausalGraph, act: str, outcome: str) -> tuple[str, ...]:
    """The attributes on directed paths from ``act`` to ``outcome``, without ``act``: causes first. Empty when there is none."""
    downstream = {*graph.descendants(act)}
    upstream = {outcome, *graph.ancestors(outcome)}
    return tuple(n for n in graph.topological_order() if n in downstream & upstream)


def _judge(
    graph: CausalGraph, name: str, act: str, mechanisms: Mapping[str, Mechanism], identifiable: bool
) -> tuple[str, str]:
    """(status, under) of one recomputed attribute."""
    mechanism = mechanisms[name]
    invertible = {n for n in mechanisms if mechanisms[n].monotone or mechanisms[n].kind in _ADDITIVE}
    if mechanism.kind == "function":
        return "assumed", f"the given function for {name} is the true mechanism"
    if moved := moved_with_noise(graph, name, act, invertible):
        known = "not shown to be identifiable" if identifiable else "data and graph alone do not identify it"
        return "not_identified", (
            f"{name} shares a hidden cause with its ancestor {', '.join(confounders(graph, name))}, so p({name} | parents) is not how "
            f"{name} follows from {', '.join(moved)}: {known}"
        )
    if mechanism.kind in _ADDITIVE:
        return "identified", f"the noise of {name} is added to {_ADDITIVE[mechanism.kind]} of its parents"
    if mechanism.monotone:
        return "identified", f"{name} increases strictly in a scalar noise"
    return "convention", (
        f"p({name} | parents) is identified, the value of {name} in one row depends on the noise convention: the data give bounds only"
    )


def identification(graph: CausalGraph, mechanisms: Mapping[str, Mechanism]) -> list[dict[str, Any]]:
    """One row per attribute of the graph acted on, and per different attribute and the image as the outcome.

    ``{"do", "outcome", "status", "under", "path", "effect"}``: ``status`` (one of ``STATUSES``) is that of the row's counterfactual,
    the weakest of what is recomputed on the way; ``under`` is what has to be true for it; ``path`` is a directed path or [];
    ``effect`` is {"identified": bool, "blocked_by": [...]} for p(outcome | do), None for the image.
    """
    rows: list[dict[str, Any]] = []
    for act in graph.attributes:
        for outcome in (n for n in graph.nodes if n != act):
            path = graph.directed_path(act, outcome) or []
            block = None if outcome == IMAGE else hedge(graph, [act], [outcome])
            if not path:
                what = "the image" if outcome == IMAGE else outcome
                status, under = "unchanged", f"the graph has no directed path from {act} to {what}"
            elif outcome == IMAGE:
                status, under = (
                    "not_identified",
                    "images and labels do not determine it, nor with the graph (Pan and Bareinboim 2024): a model's answer",
                )
            else:
                judged = [_judge(graph, n, act, mechanisms, block is None) for n in recomputed(graph, act, outcome)]
                status = max((s for s, _ in judged), key=STATUSES.index)
                # where one link is not identified, the assumptions of the other links do not help
                kept = judged if status != "not_identified" else [j for j in judged if j[0] == status]
                under = "; ".join(dict.fromkeys(text for _, text in kept))
            effect = None if outcome == IMAGE else {"identified": block is None, "blocked_by": list(block or ())}
            row = {"do": act, "outcome": outcome, "status": status, "under": under, "path": path, "effect": effect}
            rows.append(row)
    return rows
