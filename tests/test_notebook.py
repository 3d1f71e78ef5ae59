"""What notebooks show: drawings of graphs, tables of plans, pairs of images; all escaped. The notebook of the documentation runs."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.dom.minidom
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfaug import CausalGraph, Plan, PlanRow, do
from cfaug.data import open_source
from cfaug.errors import UsageError
from cfaug.offline import ShardReader
from cfaug.offline.inspect.pairs import Pair, Pairs, pairs

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def html(shown: Any) -> str:
    return str(shown._repr_html_())


def test_a_graph_shows_its_assumptions() -> None:
    drawn = html(CausalGraph("a <-> b; a -> image; b ->? image; c"))
    page = xml.dom.minidom.parseString(drawn)
    lines = [path for path in page.getElementsByTagName("path") if path.getAttribute("marker-end")]
    assert len(lines) == 3
    assert sum(bool(path.getAttribute("stroke-dasharray")) for path in lines) == 1  # the hidden common cause
    told = [text.firstChild.data for text in page.getElementsByTagName("text")]  # type: ignore[union-attr]
    assert sorted(told) == ["?", "a", "b", "c", "image"]
    assert "a <-> b, a hidden common cause" in page.getElementsByTagName("title")[0].firstChild.data  # type: ignore[union-attr]


def test_arrows_point_to_the_right() -> None:
    page = xml.dom.minidom.parseString(html(CausalGraph("a -> b -> d -> image; a -> d; c <-> b")))
    for path in page.getElementsByTagName("path"):
        if path.getAttribute("marker-end") and not path.getAttribute("stroke-dasharray"):
            start, *_, end = re.findall(
                r"(-?[\d.]+) -?[\d.]+", path.getAttribute("d").replace("Q", " ").replace("M", "")
            )
            assert float(start) < float(end)


def test_a_plan_shows_how_many_rows_set_what() -> None:
    acts = [do(), do(colour="red"), do(colour="red"), do(colour="<b>")]
    plan = Plan([PlanRow(f"k{i}", f"s{i}", act, i, 0, 0) for i, act in enumerate(acts)])
    shown = html(plan)
    rows = re.findall(r"<tr><td.*?>(.*?)</td><td>(\d+)</td><td>(.*?)</td></tr>", shown)
    assert ("red", "2", "50.0 %") in rows
    assert ("null intervention", "1", "25.0 %") in rows
    assert ("&lt;b&gt;", "1", "25.0 %") in rows
    assert "<b>" not in shown
    assert "0 rows" in html(Plan([]))


def images_in(shown: str) -> list[Any]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def test_pairs_show_the_source_and_the_counterfactual(finished: Path, birds: Path) -> None:
    sources = open_source("folder", birds, "train", target="species", spurious=["background"])
    reader = ShardReader(finished)
    found = pairs(finished, 5, sources=sources)
    assert len(found) == 5
    place = {entry.key: i for i, entry in enumerate(reader.index)}
    names = {sources.key(i): i for i in range(len(sources))}
    shown = images_in(html(found))
    for i, pair in enumerate(found):
        assert pair.record["do"]
        assert np.array_equal(shown[2 * i], sources.image(names[pair.record["source_key"]]))
        assert np.array_equal(shown[2 * i + 1], reader.image(place[pair.record["key"]]))
    assert html(found).count("<img") == 10
    assert len(pairs(reader, 1000)) == 36


def test_without_sources_null_interventions_stand_in(finished: Path) -> None:
    reader = ShardReader(finished)
    nulls = {row.source_key for row in reader.index if row.null}
    for pair in pairs(reader, 1000):
        assert (pair.source is not None) == (pair.record["source_key"] in nulls)
        assert pair.kind == "null intervention"


def test_pairs_refuse_another_data_set(finished: Path) -> None:
    other = type("Other", (), {"__len__": lambda _: 1, "key": lambda _, i: "x", "image": lambda _, i: None})()
    with pytest.raises(UsageError, match=r"one without 'bird-\d+.png'; give its split train"):
        pairs(finished, 3, sources=other)
    with pytest.raises(UsageError, match="at least one pair, got 0"):
        pairs(finished, 0)


def test_names_are_escaped() -> None:
    record: Any = {"source_key": '"><script>', "do": {"a<": "<i>"}, "factual": {"a<": "<u>"}}
    shown = html(Pairs((Pair(None, np.zeros((4, 4, 1), np.uint8), record),)))
    assert not re.search(r"<(script|i|u)>", shown)
    assert '""' not in shown
    assert shown.count("<img") == 1


def _cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in content["cells"])
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    for cell in _cells():
        *before, last = cell.splitlines()
        exec("\n".join(before), told)
        assert html(eval(last, told)).startswith("<")


def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="running a notebook in a kernel needs nbclient")
    pytest.importorskip("ipykernel", reason="running a notebook in a kernel needs ipykernel")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("text/html" in data for data in shown) == 4
