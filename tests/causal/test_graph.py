from __future__ import annotations

import json

import pytest

from cfaug.causal import CausalGraph, refuse_if_ancestor
from cfaug.data import Attribute, Schema
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


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a -> b -> c -> a", "a -> b -> c -> a"),
        ("a -> a", "a -> a"),
        ("image -> a", "last node"),
        ("a <-> image", "a <-> image"),
        ("a <-> a", "itself"),
        ("a - b", "'a - b'"),
        ("a <- b", "'a <- b'"),
        ("a -> ; b", "'a ->'"),
        ("a, b -> c", "'a, b -> c'"),
        ("a --> b", "'a --> b'"),
        (" ; ", "empty"),
    ],
)
def test_what_cannot_be_read_is_quoted_in_one_line(text: str, word: str) -> None:
    with pytest.raises(UsageError) as e:
        CausalGraph(text)
    assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_a_cycle_is_printed_whole_and_nothing_else_is() -> None:
    with pytest.raises(UsageError) as e:
        CausalGraph("x -> a; a -> b; b -> a")
    assert "a -> b -> a" in str(e.value) or "b -> a -> b" in str(e.value)
    assert "x" not in str(e.value).split("cycle:")[1].split(";")[0]


def test_unknown_nodes_get_near_names() -> None:
    schema = Schema([Attribute("species"), Attribute("background")])
    with pytest.raises(UsageError, match=r"'backgroud'.*did you mean background"):
        CausalGraph("species -> image; backgroud -> image").check(schema)
    with pytest.raises(UsageError, match="no node 'aa'"):
        GRAPH.parents("aa")


def test_a_spurious_ancestor_of_the_target_is_refused_with_its_path() -> None:
    graph = CausalGraph("place -> light -> species; species -> image; time <-> species; species -> size")
    with pytest.raises(UsageError) as e:
        refuse_if_ancestor(graph, "species", ["time", "place"])
    for word in ("place -> light -> species", "place <-> species", "spurious"):
        assert word in str(e.value)
    assert "\n" not in str(e.value)
    refuse_if_ancestor(graph, "species", ["time", "size", "unheard of"])
