"""Which effects and counterfactuals the data decide, given the graph, and which rest on a further assumption.

Two questions about do(A = a) and an attribute D that follows from A; the first is about the distribution of D in the
world acted upon, the second about one row.

1. The effect: does the graph turn p(observed attributes) into p(D | do(a))? Decided exactly for every graph with
   ``<->``, by the algorithm of Tian and Pearl (2002; 2003), complete by Huang and Valtorta (2006) and Shpitser and Pearl (2006):
   with no assumption on mechanisms but positive probabilities. What blocks it is a hedge, and is returned.
2. The row's counterfactual: what D would have been in this row, from mechanisms fitted as D given its parents. Every
   attribute N between A and D is recomputed by its mechanism and the row's noise u, so p(N | parents) has to say how N
   follows from those of its parents that do(A) moves:  u _||_ moved parents | parents that stay, and noises that the parents tell
   (``moved_with_noise``; always so without a ``<->`` between N and an ancestor of it). Then

   monotone in a scalar noise            identified: ranks given the parents carry over (Nasr-Esfahany et al. 2023)
   additive noise                        identified if the noise really is added
   discrete                              p(N | parents) is identified, and so bounds are (Tian and Pearl 2000); the row's own value
                                         is the convention's
   a function that the user gave         as good as the function, hidden causes or not

   The condition is sufficient: where it fails, p(N | parents) is not the mechanism and no number of rows makes it so, but where
   the effect on D is identifiable nevertheless, or there is an instrument, other estimators than this SCM may do better (the
   other structures of Nasr-Esfahany et al.). Hence "not shown to be identifiable", or "data and graph alone do not identify it" where
   the effect, too, is blocked.

The image is never identifiable from images and labels, not even with the graph (Pan and Bareinboim 2024).
All of it holds under the graph only, which is the user's; and says nothing about how well a mechanism was estimated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from cfaug.causal.graph import CausalGraph
from cfaug.data.schema import IMAGE
from cfaug.errors import UsageError

if TYPE_CHECKING:
    from cfaug.causal.scm import SCM

STATUSES = ("unchanged", "identified", "assumed", "convention", "not_identified")
"""What can be said of a counterfactual, from the strongest to the weakest."""

_ADDITIVE = {"additive_noise": "a function", "linear": "a linear function"}
_FUNCTION = "function"


class Described(Protocol):
    """What is asked of a mechanism."""

    @property
    def kind(self) -> str:
        """Its name in the registry, "function" for the user's own."""
        ...

    @property
    def monotone(self) -> bool:
        """Whether the value strictly increases in one scalar noise."""
        ...


def hedge(graph: CausalGraph, acts: Collection[str], outcomes: Collection[str]) -> tuple[str, ...] | None:
    """None when p(outcomes | do(acts)) is identifiable from the observed attributes, else the attributes that block it.

    The latter are joined by ``<->`` and contain both an attribute acted on and the attributes whose own mechanism would be
    needed: two models with this graph agree on all data and not on the effect. Sound and complete (Shpitser and Pearl 2006).
    Raises UsageError for a name the graph does not have, ``image``, no outcome, and an outcome that is acted on.
    """
    acts, outcomes = set(acts), set(outcomes)
    for name in (*acts, *outcomes):
        if name not in graph.attributes:
            graph.parents(name)
            raise UsageError("the image is no attribute: its counterfactuals are not identifiable; name attributes")
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
    """Tian's Identify: is Q[inner] a functional of Q[outer], both districts, inner in outer? None, or where it stops."""
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
    """What ``<->`` inside ``among`` joins to any of ``nodes``, which it holds, with them."""
    return {n for district in graph.districts(among) if nodes & {*district} for n in district}


def confounders(graph: CausalGraph, name: str) -> tuple[str, ...]:
    """The ancestors of ``name`` that share a hidden cause with it."""
    ancestors = graph.ancestors(name)
    return tuple(
        b if a == name else a for a, b in graph.bidirected if name in (a, b) and (b if a == name else a) in ancestors
    )


def moved_with_noise(graph: CausalGraph, name: str, act: str, invertible: Collection[str] = ()) -> tuple[str, ...]:
    """The parents of ``name`` that do(act) moves and on which its noise depends, given the rest; empty if all is well.

    The rest are the parents that stay, and the noises of moved parents P that are ``invertible`` and have all their own parents among
    those of ``name``: the parents of ``name`` then tell u_P, which do(act) leaves alone. Noises enter the graph as nodes that
    take over every ``<->`` of theirs, and m-separation decides.
    """
    if not confounders(graph, name):
        return ()
    reached, parents = {act, *graph.descendants(act)}, graph.parents(name)
    told = [p for p in parents if p in reached and p != act and p in invertible and {*graph.parents(p)} <= {*parents}]
    longest = max(graph.attributes, key=len)
    noise = {n: f"{longest}'{k}" for k, n in enumerate((name, *told))}  # longer than any name, so none of them
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
    graph: CausalGraph, name: str, act: str, mechanisms: Mapping[str, Described], identifiable: bool
) -> tuple[str, str]:
    """(status, under) of one recomputed attribute."""
    mechanism = mechanisms[name]
    invertible = {n for n in mechanisms if mechanisms[n].monotone or mechanisms[n].kind in _ADDITIVE}
    if mechanism.kind == _FUNCTION:
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


def identification(graph: CausalGraph, mechanisms: Mapping[str, Described]) -> list[dict[str, Any]]:
    """One row for every attribute of the graph acted on, and every other attribute and the image as the outcome.

    ``{"do", "outcome", "status", "under", "path", "effect"}``. ``status`` (one of ``STATUSES``) is the row's counterfactual,
    the weakest of what is recomputed on the way, ``under`` what has to be true for it, ``path`` a directed path or []. ``effect`` is
    {"identified": bool, "blocked_by": [...]} for p(outcome | do), None for the image. All rows take the graph for true. Several
    interventions at once: the weakest of their rows, where an attribute that is itself set needs nothing.
    """
    rows: list[dict[str, Any]] = []
    for act in graph.attributes:
        for outcome in graph.nodes:
            if outcome == act:
                continue
            row: dict[str, Any] = {"do": act, "outcome": outcome}
            path = graph.directed_path(act, outcome) or []
            if outcome == IMAGE:
                rows.append(row | _image(path) | {"path": path, "effect": None})
                continue
            block = hedge(graph, [act], [outcome])
            effect = {"identified": block is None, "blocked_by": list(block or ())}
            if not path:
                found = {"status": "unchanged", "under": f"the graph has no directed path from {act} to {outcome}"}
            else:
                judged = [_judge(graph, n, act, mechanisms, block is None) for n in recomputed(graph, act, outcome)]
                status = max((s for s, _ in judged), key=STATUSES.index)
                # what a weaker link hides is left out: it would not help to know
                kept = judged if status != "not_identified" else [j for j in judged if j[0] == status]
                found = {"status": status, "under": "; ".join(dict.fromkeys(text for _, text in kept))}
            rows.append(row | found | {"path": path, "effect": effect})
    return rows


def _image(path: list[str]) -> dict[str, str]:
    if not path:
        return {"status": "unchanged", "under": "the graph has no directed path to the image"}
    return {
        "status": "not_identified",
        "under": "images and labels do not determine it, nor with the graph (Pan and Bareinboim 2024): a model's answer",
    }


def identification_rows(scm: SCM) -> list[dict[str, Any]]:
    """:func:`identification` of a fitted SCM's graph and mechanisms; UsageError before ``fit``."""
    return identification(scm.graph, {name: scm.mechanism(name) for name in scm.graph.attributes})
