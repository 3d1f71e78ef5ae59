"""The real causal-learn on tables whose graph is known: textbook structures, knowledge, confidence, the graph to paste."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from cfaug.causal import CausalGraph
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.discovery import METHODS, Discovery, discover
from cfaug.causal.discover.orient_edges import Edge, extension
from cfaug.causal.discover.structure_learning import Score, fci, pc
from cfaug.causal.graph import refuse_if_ancestor, refuse_unconfirmed
from cfaug.data import Attribute, Schema
from cfaug.errors import UsageError

RNG = np.random.default_rng
N = 2000


def schema(*names: str) -> Schema:
    """Capitals are categorical."""
    return Schema([Attribute(n, "categorical" if n.isupper() else "continuous") for n in names])


def noise(seed: int, n: int = N) -> Any:
    return RNG(seed).laplace(size=n)


def level(score: Any, seed: int) -> Any:
    """Three values, the higher the score the later in the alphabet."""
    return np.array(list("pqr"))[np.digitize(score + RNG(seed).logistic(size=len(score)) * 0.5, [-0.8, 0.8])]


def chain(n: int = N) -> pd.DataFrame:
    """x -> B -> z, curved and mixed."""
    x = RNG(1).standard_normal(n)
    b = level(1.5 * np.sin(2 * x), 2)
    return pd.DataFrame(
        {"x": x, "B": b, "z": np.array([0.0, 1.5, -1.0])[np.searchsorted(list("pqr"), b)] + noise(3, n)}
    )


def collider(n: int = N) -> pd.DataFrame:
    """x -> z <- B, z -> w."""
    x, b = RNG(1).standard_normal(n), RNG(2).choice(list("pq"), n)
    z = np.abs(x) + 0.8 * x + (b == "p") + 0.5 * noise(3, n)
    return pd.DataFrame({"x": x, "B": b, "z": z, "w": np.tanh(z) + 0.5 * RNG(4).standard_normal(n)})


def confounder(n: int = N) -> pd.DataFrame:
    """C -> x, C -> y."""
    c = RNG(1).choice(list("pqr"), n)
    push = np.array([0.0, 1.5, -1.5])[np.searchsorted(list("pqr"), c)]
    return pd.DataFrame({"C": c, "x": push + noise(2, n), "y": push**2 + noise(3, n)})


def found(table: pd.DataFrame, method: str, **options: Any) -> dict[frozenset[str], Edge]:
    result = discover(table, schema(*table.columns), method, **{"alpha": 0.01, **options})
    assert result.n == len(table)
    return {frozenset((e.a, e.b)): e for e in result.edges}


def pairs(*texts: str) -> set[frozenset[str]]:
    return {frozenset(text) for text in texts}


@pytest.mark.parametrize("method", ["pc", "fci", "ges"])
def test_chain_and_common_cause_are_found_without_directions(method: str) -> None:
    open_end = "o-o" if method == "fci" else "--"
    for table, expected in ((chain(), pairs("xB", "Bz")), (confounder(), pairs("Cx", "Cy"))):
        edges = found(table, method)
        assert set(edges) == expected
        assert {e.kind for e in edges.values()} == {open_end}


@pytest.mark.parametrize("method", ["pc", "fci", "ges"])
def test_a_collider_is_oriented_and_what_follows_from_it(method: str) -> None:
    into = "o->" if method == "fci" else "->"
    for order in (["x", "B", "z", "w"], ["w", "z", "B", "x"]):
        edges = found(collider()[order], method)
        assert {str(e) for e in edges.values()} == {f"x {into} z", f"B {into} z", "z -> w"}


def test_only_fci_names_a_hidden_cause() -> None:
    """a -> x <- h -> y <- b, h not in the table: x and y are joined by an arrow with two heads."""
    a, b, h = (RNG(s).standard_normal(N) for s in (1, 2, 3))
    table = pd.DataFrame({"a": a, "b": b, "x": a + h + 0.5 * noise(4), "y": b + h + 0.5 * noise(5)})
    assert str(found(table, "fci")[frozenset("xy")]) == "x <-> y"
    graph = discover(table, schema("a", "b", "x", "y"), "fci", 0.01).graph(["x"])
    assert graph.bidirected == (("x", "y"),)
    assert "x <->? y" in graph.unconfirmed


def test_the_score_is_the_same_for_equivalent_graphs() -> None:
    table = collider()
    score = Score(table, schema(*table.columns))  # x B z w
    one_way = score(0, []) + score(2, [0]) + score(3, [2])
    other_way = score(3, []) + score(2, [3]) + score(0, [2])
    assert one_way == pytest.approx(other_way, rel=1e-9)
    assert score(2, [0, 1]) > score(2, [0]) > score(2, [])
    assert score(1, [0]) < score(1, [])


def test_causal_learn_has_its_own_score_back_and_says_nothing(capfd: Any) -> None:
    from causallearn.search.ScoreBased import GES

    own = GES.local_score_BDeu
    for method in METHODS:
        discover(chain(600), schema("x", "B", "z"), method, background=None)
    discover(chain(600), schema("x", "B", "z"), "fci", background=Background(required=(("x", "B"),)))
    assert GES.local_score_BDeu is own
    assert capfd.readouterr() == ("", "")


# --- background knowledge


@pytest.mark.parametrize("method", METHODS)
def test_knowledge_is_kept(method: str) -> None:
    table = chain()
    names = schema(*table.columns)
    required = discover(table, names, method, 0.01, Background(required=(("x", "z"), ("B", "x"))))
    assert {"x -> z", "B -> x"} <= {str(e) for e in required.edges}
    assert [e.required for e in required.edges if str(e) in ("x -> z", "B -> x")] == [True, True]
    tiers = discover(table, names, method, 0.01, Background(tiers=(("x",), ("B",), ("z",))))
    order = {"x": 0, "B": 1, "z": 2}
    assert all(order[a] < order[b] for a, b in tiers.graph().edges)
    assert {frozenset((e.a, e.b)) for e in tiers.edges} >= pairs("xB", "Bz")
    nothing = discover(table, names, method, 0.01, Background(forbidden=(("x", "B"), ("B", "x"))))
    assert frozenset("xB") not in {frozenset((e.a, e.b)) for e in nothing.edges}


@pytest.mark.parametrize("search", [pc, fci])
def test_a_required_edge_takes_part_in_the_search(search: Callable[..., Any]) -> None:
    """The table separates x from z; a search that may not would otherwise orient the rest as if they were apart."""
    assert ("x", "->", "z") in search(chain(), schema("x", "B", "z"), 0.01, Background(required=(("x", "z"),)))


def test_knowledge_orients_and_overrules_ges() -> None:
    """x - B - z: one known arrow turns the other, for B is no collider. x -> z <- B: a forbidden arrow is turned."""
    assert {e.kind for e in found(chain(), "ges").values()} == {"--"}
    turned = found(chain(), "ges", background=Background(tiers=(("x",), ("B", "z"))))
    assert {str(e) for e in turned.values()} == {"x -> B", "B -> z"}
    table = collider()
    assert {str(e) for e in found(table, "ges").values()} >= {"x -> z"}
    against = found(table, "ges", background=Background(forbidden=(("x", "z"),)))
    assert str(against[frozenset("xz")]) == "z -> x"


def test_a_forbidden_direction_leaves_fci_a_hidden_cause() -> None:
    """x is no cause of B; so B causes it, or something hidden causes both: the end at x is an arrow, that at B open."""
    edges = found(chain(), "fci", background=Background(forbidden=(("x", "B"),)))
    assert str(edges[frozenset("xB")]) == "B o-> x"
    assert found(chain(), "pc", background=Background(forbidden=(("x", "B"),)))[frozenset("xB")].kind == "->"


def test_knowledge_is_read_from_texts() -> None:
    known = Background.read(["a -> b"], ["b -> c -> hair colour"], [["b", "c"], ["a"]])
    assert known.required == (("b", "c"), ("c", "hair colour"))
    assert known.forbids("a", "c")
    assert not known.forbids("c", "b")
    assert not known.forbids("hair colour", "b")  # in no tier: free
    assert Background.read(**json.loads(json.dumps(known.to_json()))).required == (("b", "c"), ("c", "hair colour"))


# --- confidence


def test_resamples_say_how_sure_it_is() -> None:
    table = collider()
    table["w"] = 0.18 * table["x"] + RNG(9).standard_normal(N)  # too faint to be found every time
    s = schema(*table.columns)
    result = discover(table, s, "pc", 0.05, bootstraps=8, seed=3)
    sure = next(e for e in result.edges if (e.a, e.b) == ("x", "z"))
    assert (sure.presence, sure.orientation) == (1.0, 1.0)
    faint = [e for e in (*result.edges, *result.also) if "w" in (e.a, e.b)]
    assert all(0 < (e.presence or 0) < 1 for e in faint)
    assert faint
    assert discover(table, s, "pc", 0.05, bootstraps=8, seed=3) == result
    assert discover(table, s, "pc", 0.05).edges[0].presence is None
    assert any("present 100%" in line for line in result.text)


def test_a_discovery_survives_its_file() -> None:
    known = Background.read(required=["x -> z"], tiers=[["x", "B"], ["z"]])
    result = discover(collider(600), schema("x", "B", "z", "w"), "pc", background=known, bootstraps=2)
    data = json.loads(json.dumps(result.to_json()))
    back = Discovery.from_json(data)
    assert back == result
    assert back.graph(["z"]) == result.graph(["z"])
    with pytest.raises(UsageError, match="expected a discovery written by cfaug"):
        Discovery.from_json({"method": "pc"})


# --- the graph to paste


def test_discovered_edges_are_unconfirmed_required_ones_not() -> None:
    known = Background(required=(("x", "z"),))
    graph = discover(collider(), schema("x", "B", "z", "w"), "pc", 0.01, known).graph(["z", "B"])
    assert str(graph) == "B -> image; B ->? z; x -> z; z -> image; z ->? w"
    assert CausalGraph(str(graph)) == graph
    with pytest.raises(UsageError, match="B ->\\? z; z ->\\? w; remove the \\? from the edges you believe"):
        refuse_unconfirmed(graph)
    with pytest.raises(UsageError, match="expected an attribute, got 'y'"):
        discover(collider(600), schema("x", "B", "z", "w")).graph(["y"])


def test_a_direction_that_nobody_found_is_said_to_be_chosen() -> None:
    result = discover(chain(), schema("x", "B", "z"), "pc", 0.01)
    graph = result.graph()
    assert not {("x", "B"), ("z", "B")} <= set(graph.edges)  # that would be a collider, which the table refutes
    assert len(graph.edges) == len(graph.unconfirmed) == 2
    assert sum("either direction fits" in line and "is written as" in line for line in result.text) == 2
    assert result.choices


@st.composite
def dags(draw: st.DrawFn, letters: str = "abcdef") -> Any:
    names = draw(st.permutations(letters))
    graph: Any = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((a, b) for i, a in enumerate(names) for b in names[:i] if draw(st.integers(0, 2)) == 0)
    return graph


def colliders(graph: Any) -> set[tuple[frozenset[str], str]]:
    return {
        (frozenset((a, b)), c)
        for c in graph
        for a in graph.predecessors(c)
        for b in graph.predecessors(c)
        if a < b and not graph.has_edge(a, b) and not graph.has_edge(b, a)
    }


@settings(max_examples=60, deadline=None)
@drawn(dags())
def test_the_extension_of_a_class_is_one_of_its_members(graph: Any) -> None:
    """Same joints and same colliders are the same class (Verma & Pearl, 1990)."""
    fixed = {(a, c) for pair, c in colliders(graph) for a in pair}
    edges = [Edge(a, "->", b) if (a, b) in fixed else Edge(min(a, b), "--", max(a, b)) for a, b in graph.edges]
    directed, said = extension(tuple(graph), edges, Background())
    member: Any = nx.DiGraph(directed)
    member.add_nodes_from(graph)
    assert nx.is_directed_acyclic_graph(member)
    assert {frozenset(e) for e in directed} == {frozenset(e) for e in graph.edges}
    assert colliders(member) == colliders(graph)
    assert len(said) == sum(e.kind == "--" for e in edges)


def members(graph: Any) -> list[Any]:
    """Every graph of the class, by trying all directions: (joints, colliders) as the given one and acyclic."""
    free = [e for e in graph.edges if not any(e[1] == c and e[0] in pair for pair, c in colliders(graph))]
    found = []
    for turned in itertools.product((False, True), repeat=len(free)):
        other: Any = nx.DiGraph()
        other.add_nodes_from(graph)
        other.add_edges_from(e for e in graph.edges if e not in free)
        other.add_edges_from((b, a) if turn else (a, b) for (a, b), turn in zip(free, turned))
        if nx.is_directed_acyclic_graph(other) and colliders(other) == colliders(graph):
            found.append(other)
    return found


@settings(max_examples=60, deadline=None)
@drawn(dags("abcde"), st.permutations("abcde"), st.integers(1, 3))
def test_target_follows_from_spurious_only_if_the_class_says_so(graph: Any, names: list[str], many: int) -> None:
    target, spurious = names[0], names[1 : 1 + many]
    fixed = {(a, c) for pair, c in colliders(graph) for a in pair}
    edges = [Edge(a, "->", b) if (a, b) in fixed else Edge(min(a, b), "--", max(a, b)) for a, b in graph.edges]
    directed, said = extension(tuple(graph), edges, Background(), target, spurious)
    member: Any = nx.DiGraph(directed)
    member.add_nodes_from(graph)
    assert colliders(member) == colliders(graph)
    assert nx.is_directed_acyclic_graph(member)
    whole_class = members(graph)

    def follows(one: Any) -> bool:
        return any(nx.has_path(one, s, target) for s in spurious)

    assert follows(member) == all(follows(one) for one in whole_class)
    chosen = [line for line in said if line.startswith("chosen so that the target")]
    assert not (chosen and follows(member))
    assert chosen or follows(member) or not any(follows(one) for one in whole_class)


@settings(max_examples=40, deadline=None)
@drawn(dags("abcd"))
def test_a_hidden_cause_is_offered_where_it_implies_the_same(graph: Any) -> None:
    """By m-separation of every pair given every set, in the graph with -> and with <-> in its place."""
    edges = [Edge(min(e), "--", max(e)) for e in graph.edges]
    directed, said = extension(tuple(graph), edges, Background())
    if any("no choice keeps" in line for line in said):
        return  # then it is no class at all
    names = sorted(graph)

    def claims(pairs: list[tuple[str, str]], hidden: tuple[str, str] | None) -> list[bool]:
        text = [*names, *(f"{a} {'<->' if (a, b) == hidden else '->'} {b}" for a, b in pairs)]
        written = CausalGraph("; ".join(text))
        return [
            written.separated(a, b, given)
            for a, b in itertools.combinations(names, 2)
            for k in range(len(names) - 1)
            for given in itertools.combinations(sorted(set(names) - {a, b}), k)
        ]

    own = claims(directed, None)
    for a, b in directed:
        offered = any(f"{a} <-> {b}" in line for line in said)
        assert offered == (claims(directed, (a, b)) == own)


def test_two_dependent_attributes_are_written_target_first() -> None:
    """The plainest case: by name the background would come first, and a run refuses a background that causes the target."""
    species = RNG(1).choice(list("pq"), 600)
    table = pd.DataFrame({"background": np.where(RNG(2).random(600) < 0.8, species, "p"), "species": species})
    two = Schema([Attribute("background"), Attribute("species")], "species", ["background"])
    for method in ("pc", "fci", "ges"):
        result = discover(table, two, method)
        assert result.graph().unconfirmed == ("species ->? background",)
        refuse_if_ancestor(result.graph(), "species", ["background"])
        assert result.choices[-1] == "chosen so that the target species follows from no spurious attribute (background)"
        assert "species <-> background" in result.choices[0] or "or a hidden cause fits" in result.choices[0]
        assert Discovery.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert discover(table, Schema(two.attributes)).graph().unconfirmed == ("background ->? species",)  # by name
    known = Background(required=(("background", "species"),))  # who says so is believed, and told by the run
    assert discover(table, two, "pc", background=known).graph().edges == (("background", "species"),)


def test_without_a_member_of_the_class_the_target_stays_safe() -> None:
    """A square without a diagonal is no class: some corner becomes a collider, whatever is chosen."""
    square = [Edge("a", "--", "b"), Edge("b", "--", "c"), Edge("c", "--", "d"), Edge("a", "--", "d")]
    for target, spurious in itertools.permutations("abcd", 2):
        directed, said = extension(tuple("abcd"), square, Background(), target, [spurious])
        assert not nx.has_path(nx.DiGraph(directed), spurious, target)
        assert any("no choice keeps all that was found" in line for line in said)
        known = Background(
            forbidden=tuple((target, n) for n in "abcd" if n != target)
        )  # said beforehand: the target causes nothing
        assert not [
            pair for pair in extension(tuple("abcd"), square, known, target, [spurious])[0] if pair[0] == target
        ]


def test_the_sample_of_a_large_table_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.causal.audit.independence.MOST_ROWS", 1500)
    s = schema("x", "B", "z", "w")
    assert "pc: tested on a random sample of 1 500 of 2 000 rows" in discover(collider(), s, "pc").text
    assert not discover(collider(), s, "ges").notes  # its score is of all rows
    assert not discover(collider(1500), s, "pc").notes


@settings(max_examples=60, deadline=None)
@drawn(st.data())
def test_any_marks_give_an_acyclic_graph_with_required_edges(data: st.DataObject) -> None:
    names = tuple("abcde")
    edges = []
    for i, a in enumerate(names):
        for b in names[:i]:
            kind = data.draw(st.sampled_from(["", "->", "o->", "--", "o-o", "<->"]))
            if kind:
                ends = (a, b) if data.draw(st.booleans()) else (b, a)
                sure = kind == "->" and ends[0] < ends[1] and data.draw(st.booleans())
                edges.append(Edge(ends[0], kind, ends[1], required=sure))
    directed, _ = extension(names, edges, Background())
    assert nx.is_directed_acyclic_graph(nx.DiGraph(directed))
    assert {(e.a, e.b) for e in edges if e.required} <= set(directed)
    assert {frozenset(e) for e in directed} == {frozenset((e.a, e.b)) for e in edges if e.kind != "<->"}
    # nothing here is lost on the way through text
    result = Discovery("pc", names, tuple(edges), (), 1, 0.05, 0, 0)
    assert CausalGraph(str(result.graph())) == result.graph()


# --- missing values and odd names


def test_rows_without_a_value_are_counted() -> None:
    table = collider()
    table.loc[RNG(5).random(N) < 0.3, "B"] = None
    for method, n in (("pc", N), ("ges", int(table["B"].notna().sum()))):
        result = discover(table, schema("x", "B", "z", "w"), method, 0.01)
        assert result.n == n
        assert f"{int(table['B'].isna().sum())} of {N} rows lack a value" in result.notes[0]
        assert {str(e) for e in result.edges} == {"x -> z", "B -> z", "z -> w"}


def test_names_with_blanks_and_any_letters_are_written() -> None:
    names = ("hair colour", "x-ray", "größe", "n_1", "a.b", "(mm)")
    found = Discovery("pc", names, tuple(Edge(a, "->", b) for a, b in itertools.pairwise(names)), (), 1, 0.05, 0, 0)
    assert set(found.graph().attributes) == set(names)
    assert len(found.graph().unconfirmed) == 5
