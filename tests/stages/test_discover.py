"""`cfaug discover`: from a recipe to discovery.json, a table and a graph to paste; partial labels are read from the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, folder, folder_recipe

from cfaug.causal import CausalGraph
from cfaug.causal.discover.discovery import Discovery
from cfaug.judge.report import ReportData, render_report

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
    assert Discovery.from_json(saved).graph(["background", "glow", "species"]) == CausalGraph(saved["graph"])
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
        ({"method": "cp"}, "discover.method: expected one of pc, fci, ges, got 'cp'"),
        ({"forbidden": ["species - glow"]}, "discover.forbidden: expected a text such as"),
        ({"required": ["species -> wings"]}, "expected attributes as background knowledge, got 'wings'"),
        (
            {"required": ["glow -> species"], "forbidden": ["glow -> species"]},
            "got glow -> species, which forbidden or tiers exclude",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(
    flock: Path, tmp_path: Path, capsys: Any, settings: dict[str, Any], words: str
) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", flock, graph=ONLY_IMAGE, discover=settings)
    assert words in call(capsys, "discover", recipe, "--out", tmp_path / "out").complaint
