"""`cfaug discover`: from a recipe to discovery.json, a table and a graph to paste; partial labels are read from the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.painted import COLOURS, SHAPES, masks, paint
from helpers.tiny_run import SMALL, call, folder, folder_recipe

from cfaug.causal import CausalGraph
from cfaug.causal.discover.discovery import Discovery, Edge
from cfaug.config import DiscoverConfig, Recipe, TrainConfig, load_recipe
from cfaug.data import ArrayDataset, Attribute, Grouper, Schema
from cfaug.errors import DataError
from cfaug.judge.charts import discovery_drawing
from cfaug.judge.report import ReportData, render_report
from cfaug.stages.discovery import compare, discover, fill
from cfaug.stages.inputs import Inputs

ONLY_IMAGE = "species -> image; background -> image; glow -> image"


@pytest.fixture(scope="module")
def flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough birds for a discovery; their background follows the species, their glow nothing."""
    return folder(tmp_path_factory.mktemp("flock") / "birds", 300)


def test_a_recipe_without_attribute_edges_gets_them_proposed(flock: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(
        tmp_path / "r.yaml", flock, graph=ONLY_IMAGE, discover={"tiers": [["species"], ["background"]], "bootstraps": 6}
    )
    answer = call(capsys, "discover", recipe, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    line = 'graph: "background -> image; glow -> image; species ->? background; species -> image"'
    assert answer.out.rstrip().endswith(line)
    assert "species -> background  present 100%  so directed 100%" in answer.out
    saved = json.loads((tmp_path / "out" / "discovery.json").read_text())
    assert [(e["a"], e["kind"], e["b"]) for e in saved["edges"]] == [("species", "->", "background")]
    assert saved["bootstraps"] == 6
    assert saved["filled"] is None
    assert Discovery.from_json(saved).graph(["background", "glow", "species"]) == CausalGraph(saved["graph"])
    drawing = discovery_drawing(saved)
    assert drawing.count('class="edge"') == 1
    assert "100 % ?" in drawing
    assert "image" not in drawing.split("aria-label")[1]
    page = render_report(ReportData("birds", discovery=saved))
    for words in ("species -&gt; background", "100\u00a0%", "species -&gt;? background", "Each is a hypothesis"):
        assert words in page

    again = call(capsys, "discover", recipe, "--out", tmp_path / "out", "--json", "--discover.method=ges")
    assert [(e["a"], e["kind"], e["b"]) for e in json.loads(again.out)["edges"]] == [("species", "->", "background")]
    other = call(capsys, "discover", recipe, "--out", tmp_path / "out", "--json", "--discover.alpha=0.01")
    assert json.loads(other.out)["alpha"] == 0.01  # no setting of discover makes it another run


def test_the_line_that_is_offered_is_one_that_a_run_takes(flock: Path, tmp_path: Path, capsys: Any) -> None:
    """Nothing is known beforehand, and either direction fits the two that depend on each other."""
    recipe = folder_recipe(tmp_path / "r.yaml", flock, graph=ONLY_IMAGE, discover={"bootstraps": 3})
    answer = call(capsys, "discover", recipe, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "species -- background  present 100%  undirected in 100%" in answer.out
    assert "either direction fits, and so does species <-> background, a hidden cause of both" in answer.out
    assert "chosen so that the target species follows from no spurious attribute (background)" in answer.out
    assert "would refuse" not in answer.out
    assert "so directed" not in answer.out
    line = json.loads((tmp_path / "out" / "discovery.json").read_text())["graph"]
    assert answer.out.rstrip().endswith(f'graph: "{line}"')
    for graph, code in ((line, 0), (line.replace("species ->? background", "background -> species"), 2)):
        confirmed = folder_recipe(tmp_path / "c.yaml", flock, graph=graph.replace("?", ""))
        assert call(capsys, "plan", confirmed, "--out", tmp_path / f"run{code}").code == code


def test_an_unconfirmed_graph_is_not_generated_from(flock: Path, tmp_path: Path, capsys: Any) -> None:
    graph = "species ->? background; species -> image; background -> image; glow -> image"
    recipe = folder_recipe(tmp_path / "r.yaml", flock, graph=graph)
    complaint = call(capsys, "generate", recipe, "--out", tmp_path / "out").complaint
    assert "species ->? background; remove the ? from the edges you believe, or the edge" in complaint
    assert not (tmp_path / "out" / "shards").exists()
    assert call(capsys, "plan", recipe, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "cp"}, "discover.method must be one of pc, fci, ges, dagma, but 'cp' came"),
        ({"alpha": 0}, "discover.alpha must be between"),
        ({"forbidden": ["species - glow"]}, "discover.forbidden: expected a text such as"),
        ({"required": ["species -> wings"]}, "the background knowledge names 'wings'"),
        ({"required": ["glow -> species"], "forbidden": ["glow -> species"]}, "both required and forbidden"),
        ({"tiers": "species"}, "discover.tiers expects"),
        ({"bootstrap": 3}, "unknown key 'discover.bootstrap' in the recipe; did you mean bootstraps"),
    ],
)
def test_a_wrong_setting_is_one_line(
    flock: Path, tmp_path: Path, capsys: Any, settings: dict[str, Any], words: str
) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", flock, graph=ONLY_IMAGE, discover=settings)
    assert words in call(capsys, "discover", recipe, "--out", tmp_path / "out").complaint


def test_no_setting_of_discover_changes_the_identity_of_a_run(flock: Path, tmp_path: Path) -> None:
    plain = load_recipe(folder_recipe(tmp_path / "r.yaml", flock))
    other = load_recipe(folder_recipe(tmp_path / "s.yaml", flock, discover={"method": "fci", "alpha": 0.01}))
    assert other.discover.method == "fci"
    assert plain.fingerprint() == other.fingerprint()
    assert SMALL  # the recipes are the tiny run's


# --- partial labels


def painted(n: int, missing: float) -> Inputs:
    """Bars whose place is the class; the colour follows it, brightness the colour; of many images colour and brightness
    are not labelled."""
    codes, shapes = masks(n, 0)
    rng = np.random.default_rng(1)
    colour = np.where(rng.random(n) < 0.6, codes, rng.integers(0, 3, n))
    light = np.clip(0.25 + 0.25 * colour + 0.1 * rng.standard_normal(n), 0.1, 1.0)
    names = np.array(list(COLOURS), dtype=object)[colour]
    images = np.stack([(paint(m, c) * v).astype(np.uint8) for m, c, v in zip(shapes, names, light)])
    table = pd.DataFrame(
        {"shape": np.array(SHAPES, dtype=object)[codes], "colour": names, "light": light}, [f"k{i}" for i in range(n)]
    )
    table.loc[rng.random(n) < missing, "colour"] = None
    table.loc[rng.random(n) < missing, "light"] = np.nan
    schema = Schema(
        [
            Attribute("shape", values=SHAPES),
            Attribute("colour", values=tuple(COLOURS)),
            Attribute("light", "continuous"),
        ],
        "shape",
        ["colour"],
    )
    train = ArrayDataset(images, table, schema, "train")
    graph = CausalGraph("shape -> image; colour -> image; light -> image")
    return Inputs(train, train, train, None, graph, Grouper.fit(table, train.schema), "digest")


def recipe(**settings: Any) -> Recipe:
    return Recipe(train=TrainConfig(epochs=8, batch_size=48), discover=DiscoverConfig(bootstraps=0, **settings))


def test_missing_values_are_read_from_the_images_and_both_answers_compared() -> None:
    inputs = painted(800, 0.5)
    table = inputs.schema.canonical(inputs.train.table)
    found = discover(recipe(alpha=0.01), inputs)
    assert {str(e) for e in found.discovery.edges} == {"shape -- colour", "colour -- light"}
    assert found.filled is not None
    assert (found.filled.method, found.filled.n) == ("dagma", 800)
    assert found.discovery.n == 800
    assert set(found.readers) == {"colour", "light"}
    for name, reader in found.readers.items():
        assert reader["filled"] == int(table[name].isna().sum())
        assert reader["labelled"] + reader["filled"] == 800
        assert reader["held_out"] == reader["labelled"] // 5
    assert found.readers["colour"]["accuracy"] > 0.9
    assert {"colour", "shape"} <= {n for text in found.comparison["common"] for n in text.split()}
    assert set(found.graph.edges) >= {("shape", "image"), ("colour", "image"), ("light", "image")}
    assert found.graph.unconfirmed
    data = json.loads(json.dumps(found.to_json()))
    page = render_report(ReportData("shapes", discovery=data))
    assert "The same question with missing values read from the images" in page
    assert f"{found.readers['colour']['filled']} of 800 rows filled" in page
    assert data["filled"]["method"] == "dagma"
    assert "with the missing values read from the images:" in data["text"]


def test_what_is_filled_in_is_what_the_images_show() -> None:
    inputs, whole = painted(600, 0.4), painted(600, 0.0)
    filled, _ = fill(recipe(), inputs.train)
    assert not filled.isna().any(axis=None)
    truth, labelled = whole.train.table, inputs.train.table
    for name in ("shape", "colour", "light"):
        known = labelled[name].notna()
        assert (filled.loc[known, name] == truth.loc[known, name]).all()  # what is labelled stays
    holes = labelled["colour"].isna()
    assert (filled.loc[holes, "colour"] == truth.loc[holes, "colour"]).mean() > 0.9
    holes = labelled["light"].isna()
    assert np.corrcoef(filled.loc[holes, "light"], truth.loc[holes, "light"])[0, 1] > 0.5


def test_too_few_labels_to_read_by_are_one_line() -> None:
    with pytest.raises(
        DataError, match=r"column 'colour': expected 20 labelled training images .* got \d+; label more"
    ):
        fill(recipe(), painted(60, 0.9).train)


def test_two_answers_are_compared_edge_by_edge() -> None:
    def answer(method: str, *edges: tuple[str, str, str]) -> Discovery:
        return Discovery(method, tuple("abcde"), tuple(Edge(*e) for e in edges), (), 9, 0.05, 0, 0)

    one = answer("pc", ("a", "->", "b"), ("b", "--", "c"), ("c", "->", "d"), ("d", "->", "e"))
    other = answer("dagma", ("b", "->", "a"), ("c", "->", "b"), ("c", "->", "d"), ("a", "->", "e"))
    assert compare(one, other) == {
        "common": ["b -- c", "c -> d"],
        "reversed": ["a -> b"],
        "only pc": ["d -> e"],
        "only dagma, values filled": ["a -> e"],
    }
