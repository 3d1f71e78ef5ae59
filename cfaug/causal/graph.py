"""The causal graph as data: directed arrows between attributes, hidden common causes, the image last.

Text such as "species <-> background; species -> image; background -> image" is read piece by piece; pieces end at ";"
or a line break; "a -> b -> c" is two arrows, "a" alone a node. "a <-> b" says that a hidden cause drives both.
``image`` is the last node: nothing follows from it. Graphs with the same nodes and arrows are equal, in whatever order they were
written. The graph is the user's assumption: nothing here tests it against data.

A question mark at an arrow, "a ->? b" or "a <->? b", says that a discovery proposed it and no person has confirmed it yet. The
mark is part of the graph's identity (text, JSON, digest) and changes nothing that the graph implies.

``separated`` is m-separation (Richardson, 2003): d-separation (Pearl, 1988) after each "a <-> b" is written out as
a hidden node h with a <- h -> b.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx

from cfaug.causal.graph_svg import graph_svg
from cfaug.data.schema import IMAGE, Schema, refuse_no_schema
from cfaug.errors import UsageError, near, shown

_NAME = re.compile(r"[^\s<>;,=-]+(?:[ -][^\s<>;,=-]+)*")
_ARROW = re.compile(r"(<->\?|->\?|<->|->)")


_IN_NAMES = (
    "a graph cannot hold names with , = < > ; or a line break, nor with two of space and - side by side or at an end"
)


class CausalGraph:
    """A directed acyclic graph over attributes and ``image``, with ``<->`` for hidden common causes. Immutable.

    Raises UsageError for a piece that cannot be read (quoted), a cycle (printed), and an ``image`` that has
    children or shares a hidden cause. An arrow written both with and without its question mark is confirmed.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise UsageError(f'graph: expected text such as "species -> image; background -> image", got {shown(text)}')
        nodes: set[str] = set()
        edges: set[tuple[str, str]] = set()
        hidden: set[tuple[str, str]] = set()
        doubtful: set[tuple[str, str, str]] = set()
        certain: set[tuple[str, str, str]] = set()
        for piece in (p.strip() for p in re.split(r"[;\n]", text)):
            if not piece:
                continue
            names, arrows = _read(piece)
            nodes.update(names)
            for start, arrow, end in zip(names, arrows, names[1:]):
                a, b = start, end
                if arrow.rstrip("?") == "->":
                    edges.add((a, b))
                elif a == b:
                    raise UsageError(f"graph: expected <-> between two different attributes, got {piece!r}; name two")
                else:
                    a, b = min(a, b), max(a, b)
                    hidden.add((a, b))
                (doubtful if arrow.endswith("?") else certain).add((a, arrow.rstrip("?"), b))
        if not nodes:
            raise UsageError('graph: expected at least one arrow, got none; write one, such as "species -> image"')
        # sorted throughout, so that equal graphs encode their parents in the same order
        self._nodes = tuple(sorted(nodes - {IMAGE})) + ((IMAGE,) if IMAGE in nodes else ())
        self._edges = tuple(sorted(edges))
        self._bidirected = tuple(sorted(hidden))
        self._doubtful = frozenset(doubtful - certain)
        self._graph: Any = nx.DiGraph()
        self._graph.add_nodes_from(self._nodes)
        self._graph.add_edges_from(self._edges)
        for a, b in self._edges:
            if a == IMAGE:
                raise UsageError(f"graph: expected image as the last node, got image -> {b}; write {b} -> image")
        for pair in self._bidirected:
            if IMAGE in pair:
                other = next(n for n in pair if n != IMAGE)
                raise UsageError(
                    f"graph: expected <-> between attributes, got {other} <-> image; write {other} -> image"
                )
        if not nx.is_directed_acyclic_graph(self._graph):
            cycle = [a for a, _ in nx.find_cycle(self._graph)]
            raise UsageError(
                f"graph: expected arrows without a cycle, got {' -> '.join([*cycle, cycle[0]])}; remove one"
            )

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes by name, ``image`` last if it is there."""
        return self._nodes

    @property
    def attributes(self) -> tuple[str, ...]:
        """All nodes but the image."""
        return tuple(n for n in self._nodes if n != IMAGE)

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """The arrows, as (cause, effect)."""
        return self._edges

    @property
    def bidirected(self) -> tuple[tuple[str, str], ...]:
        """The pairs with a hidden common cause."""
        return self._bidirected

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """The arrows that carry a question mark, as text ("a ->? b"); empty for a confirmed graph."""
        return tuple(_piece(*arrow, True) for arrow in self._arrows() if arrow in self._doubtful)

    def _arrows(self) -> list[tuple[str, str, str]]:
        return [(a, "<->", b) for a, b in self._bidirected] + [(a, "->", b) for a, b in self._edges]

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def _known(self, node: str) -> str:
        if node not in self._nodes:
            raise UsageError(f"graph: expected one of its nodes, got {node!r}; {near(node, self._nodes)}")
        return node

    def _sorted(self, nodes: Iterable[str]) -> tuple[str, ...]:
        chosen = set(nodes)
        return tuple(n for n in self._nodes if n in chosen)

    def parents(self, node: str) -> tuple[str, ...]:
        """Direct causes of ``node``, by name."""
        return self._sorted(self._graph.predecessors(self._known(node)))

    def children(self, node: str) -> tuple[str, ...]:
        """Direct effects of ``node``, by name."""
        return self._sorted(self._graph.successors(self._known(node)))

    def ancestors(self, node: str) -> tuple[str, ...]:
        """Every node with a directed path to ``node`` (without itself)."""
        return self._sorted(nx.ancestors(self._graph, self._known(node)))

    def descendants(self, node: str) -> tuple[str, ...]:
        """Every node with a directed path from ``node`` (without itself)."""
        return self._sorted(nx.descendants(self._graph, self._known(node)))

    def directed_path(self, start: str, end: str) -> list[str] | None:
        """A shortest directed path ``[start, ..., end]``, or None when there is no directed path."""
        if not nx.has_path(self._graph, self._known(start), self._known(end)):
            return None
        return list(nx.shortest_path(self._graph, start, end))

    # --- what the graph implies
    def _attribute(self, node: str) -> str:
        if node == IMAGE:
            raise UsageError("expected attributes, got image; separation and hidden causes are between attributes")
        return self._known(node)

    def separated(self, a: str, b: str, given: Iterable[str] = ()) -> bool:
        """Whether ``given`` m-separates ``a`` from ``b``: the graph then implies that they are independent given them.

        The image is left out: it causes nothing and is not conditioned on. UsageError for an unknown node, the image, or an ``a``
        or ``b`` that is also ``given``.
        """
        z = {self._attribute(n) for n in given}
        if {self._attribute(a), self._attribute(b)} & z:
            raise UsageError(
                f"expected other attributes as given than {a!r} and {b!r}, got {', '.join(sorted(z))}; leave the two themselves out"
            )
        if a == b:
            return False
        written_out: Any = self._graph.subgraph(self.attributes).copy()
        for x, y in self._bidirected:
            written_out.add_edges_from([((x, y), x), ((x, y), y)])  # the pair itself names their hidden cause
        return bool(nx.is_d_separator(written_out, {a}, {b}, z))

    def confounded(self, a: str, b: str) -> bool:
        """Whether the graph has ``a <-> b``; UsageError for an unknown node."""
        return (min(self._attribute(a), self._attribute(b)), max(a, b)) in self._bidirected

    def districts(self, among: Iterable[str] | None = None) -> tuple[tuple[str, ...], ...]:
        """The attributes (or those ``among`` them) in groups joined by ``<->`` (Tian & Pearl, 2002).

        An attribute without a hidden cause is a group by itself. Sorted by the first name of each group.
        """
        joined: Any = nx.Graph(self._bidirected)
        joined.add_nodes_from(self.attributes)
        if among is not None:
            joined = joined.subgraph(among)
        return tuple(sorted(self._sorted(group) for group in nx.connected_components(joined)))

    def topological_order(self) -> tuple[str, ...]:
        """Causes before effects; ties by name."""
        return tuple(nx.lexicographical_topological_sort(self._graph))

    def attribute_order(self, schema: Schema) -> tuple[str, ...]:
        """Every attribute of ``schema``, causes before effects; those that the graph does not name come last."""
        order = [n for n in self.topological_order() if n != IMAGE]
        return (*order, *(n for n in schema.names if n not in self))

    def check(self, schema: Schema) -> None:
        """UsageError (with near names) for a node that is not an attribute of ``schema``, or what is not a Schema."""
        refuse_no_schema(schema)
        for name in self.attributes:
            if name not in schema:
                raise UsageError(f"graph: expected attributes of the schema, got {name!r}; {near(name, schema.names)}")

    # --- a value
    def __str__(self) -> str:
        joined = {n for pair in (*self._edges, *self._bidirected) for n in pair}
        pieces = [_piece(*arrow, arrow in self._doubtful) for arrow in self._arrows()]
        return "; ".join(pieces + [n for n in self._nodes if n not in joined])

    def __repr__(self) -> str:
        return f"CausalGraph({str(self)!r})"

    def drawing(self) -> str:
        """The graph as an ``<svg>`` for a page."""
        generations = nx.topological_generations(self._graph)
        depth = {name: column for column, names in enumerate(generations) for name in sorted(names)}
        return graph_svg(depth, self._edges, self._bidirected, self._doubtful)

    _repr_html_ = drawing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalGraph) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self._nodes, self._edges, self._bidirected, self._doubtful))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives back an equal graph. ``unconfirmed`` is there only when some arrow is."""
        data: dict[str, Any] = {
            "nodes": list(self._nodes),
            "edges": [list(e) for e in self._edges],
            "bidirected": [list(e) for e in self._bidirected],
        }
        # absent otherwise: the digests of graphs written before the mark existed must not move
        return data | {"unconfirmed": [list(e) for e in sorted(self._doubtful)]} if self._doubtful else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CausalGraph:
        """The inverse of ``to_json``; UsageError when ``data`` is something else."""
        try:
            arrows = [(a, "->", b) for a, b in data["edges"]] + [(a, "<->", b) for a, b in data["bidirected"]]
            marked = {(a, way, b) for a, way, b in data.get("unconfirmed", ())}
            if marked - set(arrows):
                raise ValueError("an unconfirmed arrow that is not an arrow")
            pieces = [_piece(*arrow, arrow in marked) for arrow in arrows]
            for name in {*data["nodes"], *(n for a, _, b in arrows for n in (a, b))}:
                refuse_unwritable(name)  # "a; b" would come back as two nodes
            return cls("; ".join([*data["nodes"], *pieces]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"expected a graph written by cfaug, got something else ({error}); write it again"
            ) from error

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _piece(a: str, arrow: str, b: str, doubtful: bool) -> str:
    return f"{a} {arrow}{'?' if doubtful else ''} {b}"


def _read(piece: str) -> tuple[list[str], list[str]]:
    parts = _ARROW.split(piece)
    names, arrows = [p.strip() for p in parts[::2]], parts[1::2]
    wrong = next((n for n in names if not _NAME.fullmatch(n)), None)
    if wrong is not None:
        raise UsageError(
            f'graph: expected "a -> b" (a causes b) or "a <-> b" (a hidden common cause), got {piece!r}; write it so'
            + (f"; if {wrong!r} is the name of an attribute, rename the column ({_IN_NAMES})" if wrong else "")
        )
    return names, arrows


def refuse_unwritable(name: str) -> None:
    """UsageError for the name of an attribute that no graph can hold, since its text would be read as something else."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"expected an attribute that a graph can name, got {name!r}; rename the column ({_IN_NAMES})")


def refuse_no_graph(graph: object) -> None:
    """UsageError for what is not a CausalGraph, such as the text of one."""
    if not isinstance(graph, CausalGraph):
        cure = "write CausalGraph(...) around it" if isinstance(graph, str) else "make one with CausalGraph(text)"
        raise UsageError(f"expected a CausalGraph, got {shown(graph)}; {cure}")


def refuse_if_ancestor(graph: CausalGraph, target: str, spurious: Iterable[str]) -> None:
    """UsageError, with the path, when a spurious attribute is an ancestor of the target.

    A counterfactual keeps its source's label. That is right only while the intervened attribute does not cause
    the target: otherwise do(attribute) changes what the label should be, and the kept label teaches a lie.
    """
    refuse_no_graph(graph)
    for name in spurious:
        if name in graph and target in graph and (path := graph.directed_path(name, target)):
            raise UsageError(
                f"the graph says {' -> '.join(path)}: intervening on {name!r} would change the target {target!r}, yet "
                f"counterfactuals keep their label; either correct the graph (a hidden common cause is "
                f"{name} <-> {target}) or take {name!r} off the spurious attributes"
            )


def refuse_unconfirmed(graph: CausalGraph) -> None:
    """UsageError, listing them, when arrows of ``graph`` are unconfirmed proposals of a discovery.

    Such an arrow is a hypothesis: images made under it would carry it into every classifier trained on them.
    """
    refuse_no_graph(graph)
    if graph.unconfirmed:
        raise UsageError(
            f"graph: expected confirmed edges, got proposals of a discovery: {'; '.join(graph.unconfirmed)}; "
            "remove the ? from the edges you believe, or the edge"
        )
