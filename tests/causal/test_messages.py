"""What a user is likely to get wrong in this room: (call, words of the one line that answers)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import (
    SCM,
    Background,
    CausalGraph,
    FunctionMechanism,
    diagnose,
    discover,
    do,
    falsify,
    flip,
    forecast,
    refuse_if_ancestor,
    refuse_unconfirmed,
    scale,
    shift,
    uniform,
)
from cfaug.causal.audit.identification import hedge
from cfaug.causal.audit.independence import IndependenceTest
from cfaug.data import Attribute, Schema
from cfaug.errors import CfaugError

N = 60
SCHEMA = Schema([Attribute("a"), Attribute("x", "continuous")])
GRAPH = CausalGraph("a -> x")


def rows(n: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, n)
    return pd.DataFrame({"a": np.array(["r", "g"])[a], "x": a + rng.normal(size=n), "note": "free"})


@pytest.fixture(scope="module")
def scm() -> SCM:
    return SCM(GRAPH, SCHEMA, {"x": "linear"}).fit(rows())


def searched(table: pd.DataFrame | None = None, **options: Any) -> Any:
    return discover(rows(300) if table is None else table, SCHEMA, **options)


MODEL: list[tuple[Callable[[SCM], Any], str]] = [
    (lambda scm: SCM("a -> x", SCHEMA), "got str and Schema"),  # type: ignore[arg-type]
    (lambda scm: SCM(GRAPH, ["a", "x"]), "got CausalGraph and list"),  # type: ignore[arg-type]
    (lambda scm: SCM(CausalGraph("a -> xx"), SCHEMA), "did you mean x"),
    (lambda scm: SCM(GRAPH, SCHEMA, {"x": 42}), "a name (categorical, ordinal"),  # type: ignore[dict-item]
    (lambda scm: SCM(GRAPH, SCHEMA, {"x": "linaer"}), "did you mean linear"),
    (lambda scm: SCM(GRAPH, SCHEMA).abduct(rows()), "not fitted"),
    (lambda scm: SCM(GRAPH, SCHEMA).act(do()), "not fitted"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows().drop(columns="a")), "a column 'a'"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), seed=-1), "a seed"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), weights=np.ones(3)), "expected 60 weights"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), weights=-np.ones(N)), "expected 60 weights"),
    (lambda scm: scm.act(None), "got None"),  # type: ignore[arg-type]
    (lambda scm: scm.act([do(), "a=r"]), "got 'a=r'"),  # type: ignore[list-item]
    (lambda scm: scm.act(do(aa="r")), "did you mean a"),
    (lambda scm: scm.act(do(a="mars")), "allowed: g, r"),
    (lambda scm: scm.abduct(rows().assign(a="mars")), "'mars'"),
    (lambda scm: scm.abduct(rows(), seed=[1, 2]), "one seed per row"),
    (lambda scm: scm.counterfactual(rows(), [do()]), "one intervention per row"),
    (lambda scm: scm.counterfactual(rows(), do(), chunk=0), "chunks of at least 1 row"),
    (lambda scm: scm.counterfactual(rows(), do(x=scale(1e308))), "do(x=scale(1e+308)): expected finite numbers, got"),
    (lambda scm: scm.sample(-1), "whole number of rows"),
    (lambda scm: scm.sample(2, intervention=[do()]), "expected one do(...)"),  # type: ignore[arg-type]
]
DISCOVERY: list[tuple[Callable[[SCM], Any], str]] = [
    (lambda _: searched(method="cp"), "discover.method: expected one of pc, fci, ges, got 'cp'"),
    (lambda _: searched(alpha="5 %"), "discover.alpha: expected a number between 0 and 1, got '5 %'"),
    (lambda _: searched(bootstraps=1.5), "discover.bootstraps: expected a whole number from 0 up, got 1.5"),
    (lambda _: searched(seed=-1), "the seed of discover: expected a whole number"),
    (lambda _: searched(background="x -> a"), "expected a Background, got 'x -> a'"),
    (lambda _: searched(background=Background(required=(("x", "bb"),))), "got 'bb'; known: a, x"),
    (lambda _: searched(rows(300).assign(x=2.0)), "column 'x': expected at least two different values, got only 2.0"),
    (lambda _: searched(rows(40), bootstraps=2), "rows with all values and as many again"),
    (lambda _: searched(rows(10)), "rows with all values, got 10; give more rows"),
    (lambda _: discover(rows(), Schema([SCHEMA["x"]])), "two or more attributes, got x"),
    (lambda _: discover(rows(), "x -> a"), "expected a Schema"),  # type: ignore[arg-type]
    (lambda _: discover({"x": [1.0]}, SCHEMA), "DataFrame"),  # type: ignore[arg-type]
    (lambda _: discover(rows().rename(columns={"x": "a -> b"}), Schema([SCHEMA["a"], Attribute("a -> b")])), "rename"),
    (lambda _: Background((("a", "b"),), (("a", "b"),)), "got a -> b, which forbidden or tiers exclude"),
    (
        lambda _: Background(required=(("b", "a"),), tiers=(("a",), ("b",))),
        "got b -> a, which forbidden or tiers exclude",
    ),
    (lambda _: Background(required=(("a", "b"), ("b", "a"))), "cycle, got a -> b -> a"),
    (lambda _: Background(tiers=(("a",), ("b", "a"))), "got 'a' twice"),
    (lambda _: Background(required=(("a", "a"),)), "two different attributes"),
    (lambda _: Background.read(forbidden=["a <-> b"]), "expected a text such as"),
]


TABLE = pd.DataFrame({"y": [0, 0, 1, 1] * 5, "a": list("rgrg") * 5}, index=[f"k{i}" for i in range(20)])
PAIR = Schema([Attribute("y"), Attribute("a")], "y", ["a"])
TIED = CausalGraph("y <-> a; y -> image; a -> image")


ONE = [("k0", do(a="r"))]


def planned(acts: Any = ONE, schema: Any = PAIR, **options: Any) -> Any:
    return forecast(TABLE, schema, SCM(TIED, PAIR).fit(TABLE), acts, **options)


def given(**options: Any) -> FunctionMechanism:
    return FunctionMechanism("x", ("a",), **{"predict": len, "abduct": len, "version": "1", **options})


AUDIT: list[tuple[Callable[[SCM], Any], str]] = [
    (lambda _: diagnose(TABLE, PAIR, "a -> y"), "expected a CausalGraph, got 'a -> y'"),  # type: ignore[arg-type]
    (lambda _: diagnose(TABLE, ["y", "a"]), "expected a Schema("),  # type: ignore[arg-type]
    (lambda _: diagnose(TABLE.to_dict(), PAIR), "pandas DataFrame"),  # type: ignore[arg-type]
    (lambda _: falsify(TABLE, PAIR, TIED, alpha=5), "alpha: expected a number between 0 and 1, got 5"),
    (lambda _: falsify(TABLE, PAIR, TIED, most=0), "most: expected a whole number of tests from 1 up, got 0"),
    (lambda _: falsify(TABLE, PAIR, CausalGraph("a -> shape")), "got 'shape'"),
    (lambda _: falsify(TABLE, PAIR, "a -> y"), "expected a CausalGraph"),  # type: ignore[arg-type]
    (lambda _: planned([]), "got none; plan at least one row"),
    (lambda _: planned([("nobody", do(a="r"))]), "got 'nobody'; plan again"),
    (lambda _: planned([("k0", do(a="pink"))]), "allowed: "),
    (lambda _: planned([do(a="r")]), "expected planned rows as (source key, do(...))"),
    (lambda _: planned(schema="no"), "expected a Schema("),
    (lambda _: planned(schema=Schema(PAIR.attributes, "y")), "target and at least one spurious"),
    (lambda _: planned(shares={"fake": 0.5}), "expected shares from 0 up of real, counterfactual, null, got {'fake'"),
    (lambda _: planned(shares={"real": float("nan")}), "expected shares from 0 up"),
    (lambda _: planned(shares={"null": 1}), "expected a share of rows that the plan has"),
    (lambda _: forecast(TABLE, PAIR, "scm", []), "expected a fitted SCM"),  # type: ignore[arg-type]
    (lambda _: forecast(TABLE, PAIR, SCM(TIED, PAIR), [("k0", do(a="r"))]), "not fitted"),
    (lambda _: hedge(TIED, ["y"], ["y"]), "other than what is acted on"),
    (lambda _: hedge(TIED, ["y"], ["image"]), "not identifiable; name attributes"),
    (lambda _: refuse_if_ancestor(CausalGraph("a -> y"), "y", ["a"]), "the graph says a -> y"),
    (lambda _: given(width=0), "expected a width from 1 up, got 0"),
    (lambda _: given(noise="cauchy"), "expected a noise of normal, uniform, gumbel, got 'cauchy'"),
    (lambda _: given(predict=None), "expected predict to be a function, got None"),
]


KINDS = Schema(
    [
        Attribute("colour", values=("r", "g", "b")),
        Attribute("grade", "ordinal", values=("low", "mid", "high")),
        Attribute("age", "continuous"),
    ]
)
VALUES: list[tuple[Callable[[SCM], Any], str]] = [
    (lambda _: CausalGraph("a -> b -> c -> a"), "a -> b -> c -> a"),
    (lambda _: CausalGraph("image -> a"), "write a -> image"),
    (lambda _: CausalGraph("a <-> image"), "write a -> image"),
    (lambda _: CausalGraph("a <-> a"), "two different attributes, got 'a <-> a'"),
    (lambda _: CausalGraph("a <- b"), "'a <- b'"),
    (lambda _: CausalGraph(" ; "), "at least one arrow"),
    (lambda _: CausalGraph("a -> b").parents("aa"), "expected one of its nodes, got 'aa'"),
    (lambda _: CausalGraph("a -> b").separated("a", "b", ["b"]), "leave the two themselves out"),
    (lambda _: refuse_unconfirmed(CausalGraph("a ->? b; b -> c")), "a ->? b; remove the ? from the edges you believe"),
    (lambda _: CausalGraph.from_json({"nodes": ["a"]}), "expected a graph written by cfaug"),
    (lambda _: do(x=float("nan")), "do(x=nan)"),
    (lambda _: do(x=["a"]), "do(x=['a'])"),
    (lambda _: do(x={"jump": True}), "expected one of shift"),
    (lambda _: do(x={"shift": 1, "scale": 2}), "expected one of shift"),
    (lambda _: do(image="x"), "got image"),
    (lambda _: do({"a": 1}, a=2), "got 'a' twice"),
    (lambda _: do("a"), "expected a mapping"),  # type: ignore[arg-type]
    (lambda _: shift("1"), "expected a finite number"),  # type: ignore[arg-type]
    (lambda _: scale(0), "do(x=0)"),
    (lambda _: do(colour=flip()).check(KINDS), "two values, got 3"),
    (lambda _: do(age=flip()).check(KINDS), "'age' is continuous, expected categorical or ordinal"),
    (lambda _: do(grade=shift(0.5)).check(KINDS), "whole number of ranks"),
    (lambda _: do(hair=uniform()).check(KINDS), "'hair'"),
    (lambda _: IndependenceTest(TABLE, PAIR).test("y", "a", ["y"]), "expected different attributes"),
]


@pytest.mark.parametrize(("call", "words"), [*MODEL, *DISCOVERY, *AUDIT, *VALUES])
def test_wrong_use_is_one_line(scm: SCM, call: Callable[[SCM], Any], words: str) -> None:
    with pytest.raises(CfaugError) as e:
        call(scm)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    # the function cfaug.causal.discover hides the package of that name from a dotted path
    monkeypatch.setattr(sys.modules["cfaug.causal.discover.discovery"], "find_spec", lambda name: None)
    with pytest.raises(CfaugError, match=r'causal-learn.*pip install "cfaug\[discover\]"'):
        searched()
