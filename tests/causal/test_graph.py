from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from cfaug.causal import CausalGraph, refuse_if_ancestor
from cfaug.errors import UsageError

#   a -> b -> d -> image        c <-> b
#   a ------> d
GRAPH = CausalGraph("a -> b -> d -> image; a -> d\nc <-> b;")


def test_the_text_is_read_as_drawn() -> None:
    assert GRAPH.nodes == ("a", "b", "c", "d", "image")
    assert GRAPH.attributes == ("a", "b", "c", "d")
    assert GRAPH.edges == (("a", "b"), ("a", "d"), ("b", "d"), ("d", "image"))
    assert GRAPH.bidirected == (("b", "c"),)
    assert GRAPH.parents("d") == ("a", "b")
    assert GRAPH.children("a") == ("b", "d")
    assert GRAPH.ancestors("image") == ("a", "b", "d")
    assert GRAPH.descendants("b") == ("d", "image")
    assert GRAPH.directed_path("b", "image") == ["b", "d", "image"]
    assert GRAPH.directed_path("c", "d") is None  # a hidden cause is no directed path
    assert GRAPH.topological_order().index("b") < GRAPH.topological_order().index("d")
    assert CausalGraph("lonely").nodes == ("lonely",)
    assert CausalGraph("hair colour -> Wavy-Hair").edges == (("hair colour", "Wavy-Hair"),)


def test_graphs_are_values_whatever_order_they_are_written_in() -> None:
    other = CausalGraph("b <-> c; d -> image; a -> d; b -> d; a -> b")
    assert other == GRAPH
    assert hash(other) == hash(GRAPH)
    assert other.digest == GRAPH.digest
    assert other.parents("d") == GRAPH.parents("d")
    assert CausalGraph(str(GRAPH)) == GRAPH
    assert CausalGraph.from_json(json.loads(json.dumps(GRAPH.to_json()))) == GRAPH
    assert CausalGraph("a -> b") != CausalGraph("b -> a")
    assert CausalGraph("a -> b; c").digest != CausalGraph("a -> b").digest


@pytest.mark.parametrize("name", ["a,b", "a=b", "a<b", "a>b", "a  b", "-a", "a--b"])
def test_a_name_that_no_graph_can_hold_is_a_column_to_rename(name: str) -> None:
    with pytest.raises(UsageError) as e:
        CausalGraph(f"c; {name} -> image")
    assert f"if {name!r} is the name of an attribute, rename the column (a graph cannot hold" in str(e.value)
    for data in (
        {"nodes": [name], "edges": [], "bidirected": []},
        {"nodes": ["c"], "edges": [[name, "c"]], "bidirected": []},
        {"nodes": ["c", f"{name};d"], "edges": [], "bidirected": []},
        {"nodes": ["c\nd"], "edges": [], "bidirected": []},
    ):
        with pytest.raises(UsageError, match="rename the column") as e:
            CausalGraph.from_json(data)
        assert "\n" not in str(e.value)
    with pytest.raises(UsageError) as e:
        CausalGraph("a -> ")  # nothing to rename here
    assert "rename" not in str(e.value)


def test_a_cycle_is_printed_whole_and_nothing_else_is() -> None:
    with pytest.raises(UsageError) as e:
        CausalGraph("x -> a; a -> b; b -> a")
    assert "a -> b -> a" in str(e.value) or "b -> a -> b" in str(e.value)
    assert "x" not in str(e.value).split("cycle, got")[1].split(";")[0]


def test_a_spurious_ancestor_of_the_target_is_refused() -> None:
    graph = CausalGraph("place -> light -> species; species -> image; time <-> species; species -> size")
    with pytest.raises(UsageError) as e:
        refuse_if_ancestor(graph, "species", ["time", "place"])
    for word in ("place -> light -> species", "place <-> species", "spurious"):
        assert word in str(e.value)
    assert "\n" not in str(e.value)
    refuse_if_ancestor(graph, "species", ["time", "size", "unheard of"])


# --- question marks: proposed by a discovery, confirmed by nobody


def test_a_question_mark_stays_with_its_arrow() -> None:
    graph = CausalGraph("a ->? b -> image; c <->? b; a -> c")
    assert graph.unconfirmed == ("b <->? c", "a ->? b")
    assert str(graph) == "b <->? c; a ->? b; a -> c; b -> image"
    assert graph.edges == (("a", "b"), ("a", "c"), ("b", "image"))  # the mark is about trust, not about the arrow
    plain = CausalGraph("a -> b -> image; c <-> b; a -> c")
    assert plain.unconfirmed == ()
    assert graph != plain
    assert graph.digest != plain.digest
    assert hash(graph) != hash(plain)


def test_an_arrow_also_written_without_its_mark_is_confirmed() -> None:
    assert CausalGraph("a ->? b; a -> b") == CausalGraph("a -> b")
    assert CausalGraph("a <->? b; b <-> a") == CausalGraph("a <-> b")
    assert CausalGraph("a <->? b; a -> b").unconfirmed == ("a <->? b",)  # two different arrows
    assert CausalGraph("dog? -> image").unconfirmed == ()  # a name may have a question mark of its own


def test_graphs_without_marks_keep_their_digest() -> None:
    assert set(GRAPH.to_json()) == {"nodes", "edges", "bidirected"}
    assert GRAPH.digest == "45a9f61c07f9c1bf003e264f46f79730e4580f1a146f1c5227045db7edf20112"


# --- what a graph implies


@st.composite
def graphs(draw: st.DrawFn, most: int = 5) -> CausalGraph:
    """A random acyclic graph over some of a..e, with hidden causes, marks and perhaps an image."""
    names = draw(st.permutations("abcde"))[: draw(st.integers(2, most))]
    pieces = [*names]
    for a, b in itertools.combinations(names, 2):
        if arrow := draw(st.sampled_from(["", "", "->", "->?"])):
            pieces.append(f"{a} {arrow} {b}")
        if arrow := draw(st.sampled_from(["", "", "", "<->", "<->?"])):
            pieces.append(f"{a} {arrow} {b}")
    pieces += [f"{n} -> image" for n in names if draw(st.booleans())]
    return CausalGraph("; ".join(pieces))


@drawn(graphs())
def test_text_and_json_give_back_the_same_graph(graph: CausalGraph) -> None:
    for other in (CausalGraph(str(graph)), CausalGraph.from_json(json.loads(json.dumps(graph.to_json())))):
        assert other == graph
        assert (other.unconfirmed, other.digest, hash(other)) == (graph.unconfirmed, graph.digest, hash(graph))


def _open_path(graph: CausalGraph, a: str, b: str, given: set[str]) -> bool:
    """By the definition, over all paths: every collider an ancestor of ``given`` or in it, no other node in it."""
    # an edge seen from x: the neighbour, an arrowhead at x, an arrowhead at the neighbour
    steps: dict[str, list[tuple[str, bool, bool]]] = {n: [] for n in graph.attributes}
    for x, y in graph.edges:
        if y != "image":
            steps[x].append((y, False, True))
            steps[y].append((x, True, False))
    for x, y in graph.bidirected:
        steps[x].append((y, True, True))
        steps[y].append((x, True, True))
    opened = given | {n for g in given for n in graph.ancestors(g)}

    def walk(node: str, into: bool, seen: tuple[str, ...]) -> bool:
        for after, head, onto in steps[node]:
            if after in seen:
                continue
            if len(seen) > 1 and not ((node in opened) if into and head else (node not in given)):
                continue
            if after == b or walk(after, onto, (*seen, after)):
                return True
        return False

    return walk(a, False, (a,))


@settings(max_examples=150)
@drawn(graphs(), st.data())
def test_separation_is_what_all_paths_say(graph: CausalGraph, data: st.DataObject) -> None:
    a, b = data.draw(st.permutations(graph.attributes))[:2]
    given = {n for n in graph.attributes if n not in (a, b) and data.draw(st.booleans())}
    assert graph.separated(a, b, given) == (not _open_path(graph, a, b, given))
    assert graph.separated(a, b, given) == graph.separated(b, a, given)


def test_separation_in_the_cases_of_the_textbooks() -> None:
    chain = CausalGraph("a -> b -> c; a -> image; c -> image")
    assert not chain.separated("a", "c")
    assert chain.separated("a", "c", ["b"])
    collider = CausalGraph("a -> b; c -> b; b -> d")
    assert collider.separated("a", "c")
    assert not collider.separated("a", "c", ["b"])
    assert not collider.separated("a", "c", ["d"])  # what follows from a collider opens it too
    hidden = CausalGraph("a <-> b; b <-> c; c -> d")
    assert not hidden.separated("a", "b")
    assert hidden.separated("a", "c")
    assert not hidden.separated("a", "c", ["b"])
    # the image is a common effect of all, and opens nothing
    assert CausalGraph("a -> image; b -> image").separated("a", "b")


def test_districts_are_the_attributes_joined_by_hidden_causes() -> None:
    graph = CausalGraph("e <-> b; b <-> d; a -> b; c; d -> image")
    assert graph.districts() == (("a",), ("b", "d", "e"), ("c",))
    assert graph.confounded("b", "e")
    assert graph.confounded("e", "b")
    assert not graph.confounded("d", "e")  # in one district, through b only
