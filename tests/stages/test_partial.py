"""A folder in which three training birds in ten have no background and some no glow: through every stage, none left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tiny_run import call, folder_recipe

from cfaug.causal import do
from cfaug.data import ArrayDataset, Attribute, Schema
from cfaug.decode import CounterfactualModel
from cfaug.judge.sentences import percent
from cfaug.offline import Plan, ShardReader, verify
from cfaug.stages.generated_sets import exchanged_acts

GRAPH = "species <-> background; background -> glow; species -> image; background -> image; glow -> image"


@pytest.fixture(scope="module")
def partial(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The birds; of 36 training rows 11 lack the background and 4 the glow, 1 of them both."""
    root = tmp_path_factory.mktemp("partial") / "birds"
    shutil.copytree(birds, root)
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    rows = np.random.default_rng(0).permutation(36)
    table.loc[rows[:11], "background"] = ""
    table.loc[rows[10:14], "glow"] = ""
    table.to_csv(root / "metadata.csv", index=False)
    return root


@pytest.fixture(scope="module")
def recipe(partial: Path) -> Path:
    methods = ["erm", "group_resampling", "group_dro", "cfaug", "cfaug+group_dro"]
    return folder_recipe(
        partial.parent / "r.yaml", partial, graph=GRAPH, train={"methods": methods}, evaluate={"images": 18}
    )


def test_every_stage_takes_training_rows_that_lack_values(
    recipe: Path, partial: Path, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    out = tmp_path / "out"
    answer = call(capsys, "run", recipe, "--out", out)
    assert answer.code == 0, answer.err
    assert "background: 11 of 36 training rows have no value; they are kept" in caplog.text
    assert "background: learned from the 25 of 36 rows that have background" in caplog.text
    assert "glow: learned from the 22 of 36 rows that have glow and its parents background" in caplog.text

    diagnosis = json.loads((out / "diagnosis.json").read_text())
    assert (diagnosis["n"], diagnosis["missing"]) == (36, {"background": 11, "glow": 4})
    assert diagnosis["spurious"]["background"]["n"] == 25

    table = pd.read_csv(partial / "metadata.csv", dtype=str, index_col="file_name")
    plan, reader = Plan.load(out / "plan"), ShardReader(out)
    assert {row.source_key for row in plan} == set(table.index[:36])  # nobody left out
    assert verify(out).ok
    for i in range(len(reader)):
        record = reader.record(i)
        row = table.loc[record["source_key"]]
        assert (record["factual"]["background"] is None) == pd.isna(row["background"])
        assert (record["factual"]["glow"] is None) == pd.isna(row["glow"])
        if not record["do"]:
            assert record["attributes"] == record["factual"]
        elif pd.isna(row["background"]):  # what the ground did to the glow cannot be taken back
            assert record["attributes"]["glow"] is None

    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(results) == 5
    assert all(sum(group["n"] for group in row["groups"].values()) == 12 for row in results)

    figures = json.loads((out / "evaluation" / "figures.json").read_text())
    judged = [row["source"] for row in figures["rows"]]
    known = int(table.loc[judged, "background"].notna().sum())
    assert figures["images"] == len(judged) == 18
    assert figures["reversibility_n"] == known < 18
    assert figures["attributes"]["background"]["n"] <= known
    page = (out / "report.html").read_text()
    assert f"background in 11 of 36 rows ({percent(11 / 36)}), glow in 4 of 36 rows ({percent(4 / 36)})" in page
    assert f"{known} of 18 images have a known value to go back to" in page

    model = CounterfactualModel.load(out / "model")
    holes = table[:36].assign(background=lambda t: t["background"].where(t["background"].notna(), None))
    assert model.scm.counterfactual(holes, do()).equals(model.schema.canonical(holes))


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        (40, "background", "column 'background', row 'bird-40.png': expected one of land, water, got no value; fill it in"),
        (50, "glow", "column 'glow', row 'bird-50.png': expected a finite number, got no value; fill it in"),
        (3, "species", "column 'species', row 'bird-03.png': expected a value, got no value; fill it in"),
    ],
)  # fmt: skip
def test_a_hole_anywhere_else_is_one_line(
    partial: Path, tmp_path: Path, capsys: Any, row: int, column: str, words: str
) -> None:
    root = tmp_path / "birds"
    shutil.copytree(partial, root)
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    table.loc[row, column] = ""
    table.to_csv(root / "metadata.csv", index=False)
    answer = call(capsys, "fit", folder_recipe(tmp_path / "r.yaml", root, graph=GRAPH), "--out", tmp_path / "out")
    assert words in answer.complaint
    assert "only training rows may lack values, and never the target's" in answer.complaint
    assert not (tmp_path / "out" / "model").exists()


def test_exchanged_interventions_keep_the_joint_distribution() -> None:
    rng = np.random.default_rng(0)
    schema = Schema([Attribute("y"), Attribute("a"), Attribute("b", "continuous")], "y", ["a", "b"])
    table = pd.DataFrame(
        {"y": rng.choice(["0", "1"], 80), "a": rng.choice(["r", "g"], 80), "b": rng.normal(size=80)},
        index=[f"k{i}" for i in range(80)],
    )
    table.loc[rng.random(80) < 0.3, "a"] = None
    table.loc[rng.random(80) < 0.3, "b"] = np.nan
    acts = exchanged_acts(table, schema, 0)
    done = pd.DataFrame([{"y": table.loc[key, "y"], **act.assignments} for key, act in acts.items()])
    assert [key for key, act in acts.items() if act.is_null] == table.index[
        table[["a", "b"]].isna().all(axis=1)
    ].tolist()

    def rows(t: pd.DataFrame) -> list[str]:
        return sorted(f"{y} {a} {b}" for y, a, b in zip(t["y"], t["a"].fillna("-"), t["b"]))

    assert rows(done) == rows(table)


def test_the_rules_are_those_of_the_split(partial: Path) -> None:
    schema = Schema([Attribute("y", values=("0",)), Attribute("a", values=("r",))], "y", ["a"])
    images = np.zeros((2, 4, 4, 3), np.uint8)
    table = pd.DataFrame({"y": ["0", "0"], "a": ["r", None]}, index=["k0", "k1"])
    assert ArrayDataset(images, table, schema, "train").table["a"].isna().tolist() == [False, True]
    for split in ("val", "test"):
        with pytest.raises(Exception, match="'a', row 'k1': expected one of r, got no value"):
            ArrayDataset(images, table, schema, split)
