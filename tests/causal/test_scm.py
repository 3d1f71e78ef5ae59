from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from cfaug.causal import SCM, CausalGraph, FunctionMechanism, do, flip, resample, scale, shift, uniform
from cfaug.causal.mechanisms import flows
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, ShardError, UsageError

#   place -> light -> mood       size <-> place       extra (not in the graph)
GRAPH = CausalGraph("place -> light -> mood; size <-> place; mood -> image")
N = 400


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    place = rng.integers(0, 2, N)
    light = 2.0 * place + rng.normal(0, 0.3, N)
    return pd.DataFrame(
        {
            "place": np.array(["in", "out"])[place],
            "light": light,
            "mood": np.where(light + rng.normal(0, 0.3, N) > 1, "good", "bad"),
            "size": np.array(["s", "m", "l"])[np.clip(place + rng.integers(0, 2, N), 0, 2)],
            "extra": rng.normal(size=N),
        },
        index=[f"k{i}" for i in range(N)],
    )


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema(
        [
            Attribute("mood"),
            Attribute("place"),
            Attribute("light", "continuous"),
            Attribute("size", "ordinal", values=("s", "m", "l")),
            Attribute("extra", "continuous"),
        ]
    )


@pytest.fixture(scope="module")
def scm(table: pd.DataFrame, schema: Schema) -> SCM:
    return SCM(GRAPH, schema).fit(table, seed=0)


def test_descendants_follow_and_all_else_is_bit_identical(scm: SCM, table: pd.DataFrame) -> None:
    factual = scm.schema.canonical(table)
    cf = scm.counterfactual(table, do(place="out"))
    moved = factual["place"] == "in"
    assert (cf["place"] == "out").all()
    assert cf["light"][moved].sub(factual["light"][moved]).mean() == pytest.approx(2, abs=0.25)
    assert (cf["mood"][moved] == "good").mean() > 0.85
    assert cf[~moved].equals(factual[~moved])
    for name in ("size", "extra"):  # a hidden common cause carries no intervention
        assert cf[name].equals(factual[name])
    cut = scm.counterfactual(table, do(light=-1))
    assert cut["place"].equals(factual["place"])
    assert (cut["light"] == -1.0).all()


@pytest.mark.parametrize("kind", ["categorical", "ordinal"])
def test_attributes_of_one_row_draw_different_noise(kind: str) -> None:
    column = np.array(list("pq"))[np.random.default_rng(0).integers(0, 2, N)]
    twins = pd.DataFrame({"a": column, "b": column})
    schema = Schema([Attribute(n, kind, values=("p", "q")) for n in "ab"])
    scm = SCM(CausalGraph("a; b"), schema).fit(twins)  # two equal mechanisms and two equal columns
    noise = scm.abduct(twins, seed=0).values
    assert (noise["a"] != noise["b"]).all()
    drawn = scm.sample(N, seed=0)
    assert 0.3 < (drawn["a"] == drawn["b"]).mean() < 0.7


@pytest.mark.parametrize(("name", "value"), [("extra", np.inf), ("size", "xl"), ("place", "nowhere")])
def test_a_wrong_value_is_refused_where_nothing_is_recomputed(
    scm: SCM, table: pd.DataFrame, name: str, value: object
) -> None:
    wrong = table.iloc[:5].astype(object).copy()
    wrong.loc["k3", name] = value
    with pytest.raises(DataError, match=name):
        scm.counterfactual(wrong, do(size="m"))  # nothing follows from size


def test_samples_are_interventional(scm: SCM) -> None:
    drawn = scm.sample(2000, seed=1, intervention=do(place="out"))
    assert drawn.shape == (2000, 5)
    assert (drawn["place"] == "out").all()
    assert drawn["light"].mean() == pytest.approx(2, abs=0.15)
    assert scm.sample(50, seed=1).equals(scm.sample(50, seed=1))
    assert not scm.sample(50, seed=1).equals(scm.sample(50, seed=2))
    assert scm.sample(0).shape == (0, 5)


def test_saved_and_loaded_it_is_the_same_model(scm: SCM, table: pd.DataFrame, tmp_path: Path) -> None:
    scm.save(tmp_path)
    again = SCM.load(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scm.json", "scm.safetensors"]
    assert again.digest == scm.digest
    expected = scm.counterfactual(table, do(place="out"), seed=5)
    assert again.counterfactual(table, do(place="out"), seed=5).equals(expected)
    assert pickle.loads(pickle.dumps(scm)).counterfactual(table, do(place="out"), seed=5).equals(expected)
    before = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    again.save(tmp_path)
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    "damage", ["json cut", "json edited", "tensor flip", "tensor cut", "tensor gone", "gone", "old"]
)
def test_a_corrupt_checkpoint_is_refused_in_one_line(scm: SCM, tmp_path: Path, damage: str) -> None:
    scm.save(tmp_path)
    text, packed = tmp_path / "scm.json", tmp_path / "scm.safetensors"
    raw = packed.read_bytes()
    data = json.loads(text.read_text())
    if damage == "json cut":
        text.write_text(text.read_text()[:200])
    elif damage == "json edited":
        data["mechanisms"]["place"]["rows"] += 1
        text.write_text(json.dumps(data))
    elif damage == "tensor flip":
        packed.write_bytes(raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
    elif damage == "tensor cut":
        packed.write_bytes(raw[:-8])
    elif damage == "tensor gone":
        packed.unlink()
    elif damage == "gone":
        text.unlink()
    else:
        text.write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(ShardError) as e:
        SCM.load(tmp_path)
    assert "\n" not in str(e.value)
    assert "scm." in str(e.value)


@pytest.fixture(scope="module")
def holed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows 0-9 without light, 10-19 without place, 20-29 without mood, 30-39 without size; the others whole."""
    holes = table.copy()
    for k, name in enumerate(["light", "place", "mood", "size"]):
        holes.iloc[10 * k : 10 * k + 10, holes.columns.get_loc(name)] = np.nan if name == "light" else None
    return holes


def test_a_mechanism_learns_from_the_rows_that_have_its_values(
    table: pd.DataFrame,
    holed: pd.DataFrame,
    schema: Schema,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows, "STEPS", 3)  # which rows are learned from, not how well
    fitted = schema.fit(holed, schema.names)
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    scm = SCM(GRAPH, fitted).fit(holed, weights=weights)
    said = [r.getMessage() for r in caplog.records]
    assert "mood: learned from the 380 of 400 rows that have mood and its parents light" in said
    assert "size: learned from the 390 of 400 rows that have size" in said
    assert not any(line.startswith("extra") for line in said)
    # the mood of the rows that have mood and light, and their weights: exactly what a table of those rows gives
    rows = holed[["mood", "light"]].notna().all(axis=1).to_numpy()
    alone = SCM(GRAPH, fitted).fit(table[rows], weights=weights[rows])
    assert scm.mechanism("mood").state()[0] == alone.mechanism("mood").state()[0]
    with pytest.raises(DataError) as e:
        SCM(GRAPH, fitted).fit(holed.iloc[:20])  # no row has both place and light
    assert "light and its parents place, got none among 20" in str(e.value)


def test_a_missing_value_is_no_change_and_nothing_is_guessed(
    scm: SCM, table: pd.DataFrame, holed: pd.DataFrame
) -> None:
    factual = scm.schema.canonical(holed)
    noise = scm.abduct(holed, seed=1)
    assert np.isnan(noise.values["light"][:20]).all()  # itself, or its parent
    assert np.isnan(noise.values["mood"][:10]).all()
    assert np.isfinite(noise.values["mood"][10:20]).all()  # place is no parent of mood
    assert scm.predict(noise).equals(factual)  # NaN differs from NaN, and yet nothing has changed
    out = scm.act(do(place="out")).predict(noise)
    assert (out["place"] == "out").all()
    moved = (factual["place"] != "out").to_numpy()
    # light was missing and place moved, so mood cannot stay what it was; where nothing moved, it does
    assert out["mood"][:10].isna().equals(pd.Series(moved[:10], out.index[:10], name="mood"))
    assert moved[:10].any()
    assert not moved[:10].all()
    # place was missing: whether it moved is not known, so neither is light
    assert out.loc[:, ["light", "mood"]][10:20].isna().all(axis=None)
    assert out["size"].equals(factual["size"])  # no descendants: as they were, holes and all
    assert out["extra"].equals(factual["extra"])
    # whole rows: as if the others were whole too
    whole = scm.counterfactual(table, do(place="out"), seed=1)
    pd.testing.assert_frame_equal(out[40:], whole[40:], rtol=1e-9)
    assert scm.counterfactual(holed.iloc[:5], do(light=1.0), seed=1)["mood"].isna().all()  # not one row to abduct from


def test_a_target_cannot_be_missing(table: pd.DataFrame, schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "STEPS", 3)
    schema = Schema(schema.attributes, target="mood").fit(table)
    scm = SCM(CausalGraph("size -> image; mood -> image"), schema).fit(table)
    for use in (scm.fit, scm.abduct):
        with pytest.raises(DataError) as e:
            use(table.assign(mood=[*table["mood"][:-1], None]))
        assert "'mood', row 'k399'" in str(e.value)
        assert "never the target's" in str(e.value)


def test_what_a_fit_cannot_know_is_said_with_numbers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "STEPS", 3)
    table = pd.DataFrame({"a": list("rg" * 10), "x": [1.5] * 20, "z": np.linspace(0, 1, 20)})
    schema = Schema(
        [Attribute("a", values=("r", "g", "b")), Attribute("x", "continuous"), Attribute("z", "continuous")]
    )
    scm = SCM(CausalGraph("a -> z; x -> image"), schema).fit(table)
    said = [r.getMessage() for r in caplog.records]
    assert "x has one value in all 20 rows: nothing says what a different value of it would do" in said
    assert "a=b: no row to learn from; it gets a small probability" in said
    few = next(line for line in said if line.startswith("z: 20 rows for"))
    assert int(few.split()[4]) == scm.mechanism("z").parameters > 20
    caplog.clear()
    for _ in range(2):  # said once, however many batches
        scm.counterfactual(table, [do(a="b"), do(x=2.5), *[do(a="r", z=0.5)] * 18])
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        "do(a=b): no row has it (rows have r, g); what follows from it is extrapolated",
        "do(x=2.5): the rows go from 1.5 to 1.5; what follows from it is extrapolated",
    ]


def test_changes_do_what_they_say(scm: SCM, table: pd.DataFrame) -> None:
    factual = scm.schema.canonical(table)
    got = scm.counterfactual(table, do(light=shift(0.25), place=flip()), seed=2)
    light = scm.counterfactual(table, do(place=flip()), seed=2)["light"]
    assert (got["place"] != factual["place"]).all()
    pd.testing.assert_series_equal(got["light"], light + 0.25)  # the mechanism's answer to the new place, moved
    assert (scm.counterfactual(table, do(light=scale(3)))["light"] == 3 * factual["light"]).all()
    # draws: the marginal, or all values alike; independent of the row's own
    drawn = scm.counterfactual(table, do(size=resample()), seed=1)["size"]
    even = scm.counterfactual(table, do(size=uniform()), seed=1)["size"]
    shares = factual["size"].value_counts(normalize=True)
    assert (drawn.value_counts(normalize=True) - shares).abs().max() < 0.1
    assert (even.value_counts(normalize=True) - 1 / len(shares)).abs().max() < 0.1
    assert not drawn.equals(scm.counterfactual(table, do(size=resample()), seed=3)["size"])
    low, high = factual["light"].min(), factual["light"].max()
    spread = scm.counterfactual(table, do(light=uniform()), seed=1)["light"]
    assert spread.between(low, high).all()
    assert kstest(spread, "uniform", args=(low, high - low)).pvalue > 1e-3
    assert kstest(scm.counterfactual(table, do(light=resample()), seed=1)["light"], factual["light"]).pvalue > 1e-3


def test_an_ordinal_shift_moves_by_ranks_and_stops_at_the_ends() -> None:
    schema = Schema([Attribute("g", "ordinal", values=("low", "mid", "high"))])
    table = pd.DataFrame({"g": ["low", "mid", "high"]})
    scm = SCM(CausalGraph("g -> image"), schema).fit(table)
    assert scm.counterfactual(table, do(g=shift(1)))["g"].tolist() == ["mid", "high", "high"]
    assert scm.counterfactual(table, do(g=shift(-5)))["g"].tolist() == ["low"] * 3


def test_the_digest_is_that_of_the_last_fit() -> None:
    schema = Schema([Attribute("a", values=("r", "g"))])
    scm = SCM(CausalGraph("a -> image"), schema).fit(pd.DataFrame({"a": list("rrrg")}))
    first = scm.digest
    assert scm.fit(pd.DataFrame({"a": list("rrgg")})).digest != first
    assert scm.fit(pd.DataFrame({"a": list("rrrg")})).digest == first


def test_nothing_is_drawn_that_no_row_has() -> None:
    schema = Schema([Attribute("a", values=("r", "g", "b", "y"))])
    table = pd.DataFrame({"a": list("rrry") * 50})
    scm = SCM(CausalGraph("a -> image"), schema).fit(table)
    for change, share in ((uniform(), 0.5), (resample(), 0.25)):
        drawn = scm.counterfactual(table, do(a=change), seed=0)["a"]
        assert set(drawn) == {"r", "y"}
        assert abs((drawn == "y").mean() - share) < 0.1


def test_a_change_of_a_missing_value_is_missing(scm: SCM, holed: pd.DataFrame) -> None:
    assert scm.counterfactual(holed, do(light=shift(1)))["light"][:10].isna().all()


def test_mechanisms_are_chosen_by_name_or_given(
    table: pd.DataFrame, schema: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "STEPS", 3)
    own = FunctionMechanism(
        "mood", ("light",), predict=lambda noise, parents: np.where(noise[:, 0] > 0, "up", "down"),
        abduct=lambda values, parents: np.where(values == "up", 1.0, -1.0)[:, None], version="sign",
    )  # fmt: skip
    table = table.assign(mood=np.where(table["light"] > 0, "up", "down"))
    schema = Schema([a for a in schema if a.name != "mood"] + [Attribute("mood")])
    scm = SCM(GRAPH, schema, {"light": "linear", "mood": own}).fit(table)
    assert scm.mechanism("light").kind == "linear"
    scm.save(tmp_path)
    with pytest.raises(UsageError, match="expected mechanisms of your own for mood, whose code is not saved, got none"):
        SCM.load(tmp_path)
    again = SCM.load(tmp_path, {"mood": own})
    assert again.counterfactual(table, do(light=0.0), 1).equals(scm.counterfactual(table, do(light=0.0), 1))
    for wrong, word in [
        ({"lihgt": "linear"}, "did you mean light"),
        ({"light": "linaer"}, "linear"),
        ({"place": "linear"}, "place"),
        ({"place": own}, "mechanism of 'place': expected one that computes 'place' from nothing"),
    ]:
        with pytest.raises(UsageError, match=word):
            SCM(GRAPH, schema, wrong)


# --- a smaller table: a -> x
SMALL = Schema([Attribute("a"), Attribute("x", "continuous")])
ARROW = CausalGraph("a -> x")


def few() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 60)
    return pd.DataFrame({"a": np.array(["r", "g"])[a], "x": a + rng.normal(size=60), "note": "free"})


@pytest.fixture(scope="module")
def simple() -> SCM:
    return SCM(ARROW, SMALL, {"x": "linear"}).fit(few())


@pytest.mark.parametrize(
    "index", [pd.RangeIndex(7, 7 + 60), pd.Index([float(i) for i in range(60)]), pd.Index(["k"] * 60)]
)
def test_the_result_has_the_index_of_the_table(simple: SCM, index: pd.Index) -> None:
    table = few().set_index(index)
    for chunk in (10, 1000):
        assert simple.counterfactual(table, do(a="r"), chunk=chunk).index.equals(index)
    noise = simple.abduct(table)
    assert simple.act(do(a="r")).predict(noise).index.equals(index)
    if index.is_unique:
        table["cf"] = simple.counterfactual(table, do(a="r"))["x"]
        assert table["cf"].notna().all()
    # the draws go by the key's text, whatever type it has
    texts = few().set_index(index.map(str))
    drawn = simple.counterfactual(table, do(a=resample()))
    assert (drawn.to_numpy() == simple.counterfactual(texts, do(a=resample())).to_numpy()).all()


def test_fitting_again_forgets_the_first_table(simple: SCM) -> None:
    other = few()
    other["x"] = 100 * other["x"] + 50
    other.loc[0, "a"] = "new"
    twice = SCM(ARROW, SMALL, {"x": "linear"}).fit(few()).fit(other)
    assert twice.digest == SCM(ARROW, SMALL, {"x": "linear"}).fit(other).digest


def test_a_fit_warns_of_values_by_weight(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"a": ["r"] * 10 + ["g"] * 40, "x": [1.0, 2.0] * 25})
    schema = Schema([Attribute("a", values=("r", "g", "b", "y")), SMALL["x"]])
    weights = np.repeat([0.0, 1.0], [10, 40])
    SCM(ARROW, schema, {"x": "linear"}).fit(table, weights=weights)
    said = [r.getMessage() for r in caplog.records]
    assert "a has one value in all 40 rows: nothing says what a different value of it would do" in said
    assert "a=r (and 2 more values): no row to learn from; it gets a small probability" in said
    assert any(line.startswith("x is continuous but has 2 different values in 40 rows") for line in said)
