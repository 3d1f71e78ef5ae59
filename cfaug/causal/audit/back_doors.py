"""What the graph says about an intervention: whether it keeps the label, what follows from it, and which paths confound it.

A path from the target to an attribute is *open*, with nothing conditioned on, when it has no collider (-> v <-): it goes up
against the arrows, turns at most once, at a common cause, and goes down (J. Pearl, Causality, 2009, ch. 1.2.3 and 3.3.1).
It is a *back door* of the attribute when it arrives there through an arrow that points at it; do(attribute) cuts that arrow.
``a <-> b`` is written out as a <- hidden -> b. The table plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import networkx as nx

from cfaug.causal.graph import CausalGraph
from cfaug.data.schema import IMAGE, Schema

MOST_PATHS = 3
_MOST_TRIED = 200  # a dense graph has too many paths to list


def back_doors(graph: CausalGraph, target: str, attribute: str, most: int = MOST_PATHS) -> list[str]:
    """At most ``most`` open back-door paths between two nodes, shortest first: "smile <- age -> hair", read from the target.

    A hidden common cause counts as one step, "species <-> background".
    """
    found: list[tuple[int, str]] = []
    for path in islice(_open_walks(graph, target, attribute), _MOST_TRIED):
        text, steps = _written(path)
        # of equally short ones the first by name, so that the answer does not depend on the search
        if len(found) >= most and steps > found[most - 1][0]:
            break
        found = sorted([*found, (steps, text)])
    return [text for _, text in found[:most]]


def _open_walks(graph: CausalGraph, target: str, attribute: str) -> Iterator[list[tuple[Any, str]]]:
    """Simple collider-free paths whose last step points at ``attribute``, by length.

    Every path of one directed graph of two floors is collider-free: it climbs on "up", turns once, and descends on "down".
    """
    floors: Any = nx.DiGraph()
    for cause, effect in graph.edges:
        floors.add_edge((effect, "up"), (cause, "up"), weight=2)
        floors.add_edge((cause, "down"), (effect, "down"), weight=2)
    for pair in graph.bidirected:
        for one in pair:
            floors.add_edge((one, "up"), (pair, "up"), weight=1)
            floors.add_edge((pair, "down"), (one, "down"), weight=1)
    # no turn at the attribute itself: climbing to it means that it causes the target, which is no back door
    turns = {target, *(node for node, floor in floors if floor == "up")} - {attribute}
    floors.add_edges_from((((node, "up"), (node, "down")) for node in sorted(turns, key=str)), weight=0)
    start, end = (target, "up"), (attribute, "down")
    if start not in floors or end not in floors or not nx.has_path(floors, start, end):
        return
    for walk in nx.shortest_simple_paths(floors, start, end, weight="weight"):
        places = [node for i, (node, _) in enumerate(walk) if i == 0 or walk[i - 1][0] != node]
        if len(set(places)) == len(places):  # up by a node and down by it again is a detour, not a path
            yield walk


def _written(walk: list[tuple[Any, str]]) -> tuple[str, int]:
    text, steps = str(walk[0][0]), 0
    for i in range(1, len(walk)):
        (before, _), (node, floor) = walk[i - 1], walk[i]
        if node == before or isinstance(node, tuple):
            continue
        arrow = "<->" if isinstance(before, tuple) else "<-" if floor == "up" else "->"
        text += f" {arrow} {node}"
        steps += 1
    return text, steps


def safe_interventions(graph: CausalGraph, schema: Schema, target: str) -> dict[str, dict[str, Any]]:
    """Attribute -> ``{"safe", "why", "path", "recomputed", "open_paths"}``, for all of schema and graph.

    ``safe``: a counterfactual under do(attribute) may keep its label, for the graph has no directed path (``path``) from
    it to the target; False as well where the graph lacks the attribute or the target.
    ``recomputed``: the attributes that follow from it; ``open_paths``: the back doors through which it is confounded.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*schema.names, *graph.attributes)):
        row: dict[str, Any] = {"safe": False, "path": None, "recomputed": [], "open_paths": []}
        if name in graph:
            row["recomputed"] = [n for n in graph.descendants(name) if n != IMAGE]
        known = name in graph and target in graph
        if name == target:
            row["why"] = f"it is the target: do({name}) changes the label itself"
        elif not known:
            row["why"] = f"{name if name not in graph else target} is not in the graph, which says nothing about it"
        else:
            row["path"] = graph.directed_path(name, target)
            row["open_paths"] = back_doors(graph, target, name)
            if row["path"]:
                row["why"] = f"the graph says {' -> '.join(row['path'])}: the label would change"
            else:
                row["safe"] = True
                row["why"] = f"no directed path to {target}"
                if IMAGE in graph and IMAGE not in graph.descendants(name):
                    row["why"] += ", but none to the image either: nothing would show"
        found[name] = row
    return found
