"""Attributes that a formula reads from pixels, and what is said where nothing can be measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.painted import inputs
from helpers.tiny_run import call, folder_recipe

from cfaug.causal import Intervention, do
from cfaug.data import ArrayDataset, Attribute, Schema
from cfaug.stages import checked_inputs as inputs_module
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.evaluation import counted_rows, measured_errors


def glow(images: np.ndarray) -> np.ndarray:
    """The brightness that ``tiny_run.folder`` adds to the ground, read off a corner."""
    corner = images[:, 0, 0].astype(np.float64)
    return np.where(corner[:, 1] > corner[:, 2], corner[:, 1] - 160, corner[:, 1] - 90)


def test_a_measured_attribute_of_a_run(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("evaluation"))
    assert json.loads((finished / "evaluation" / "figures.json").read_text())["not_measured"] == ["glow"]
    monkeypatch.setattr(inputs_module, "measures_of", lambda source: {"glow": glow, "elsewhere": glow})
    assert call(capsys, "report", recipe, "--out", out).code == 0
    figures = json.loads((out / "evaluation" / "figures.json").read_text())
    assert figures["not_measured"] == []
    row = figures["measures"]["glow"]
    assert set(figures["measures"]) == {"glow"}  # "elsewhere" is no parent of the image
    assert not row["intervened"]
    assert row["n"] == 12
    assert row["mae_real"] < 1  # painted in whole grey levels
    assert row["mae_unchanged"] < 1  # nobody intervened on it, so the factual image still shows it
    assert 0 <= row["mae"] < 60  # a decoder of five steps changes little, and its null interventions nothing
    page = (out / "report.html").read_text()
    assert "preservation: glow" in page
    assert "not measured" not in page


def test_only_interventions_that_change_the_value_count() -> None:
    """A value of 10 to 60, painted as the brightness of the whole image."""
    values = np.arange(10.0, 70.0, 10.0)
    images = np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (6, 4, 4, 3))
    table = pd.DataFrame({"shape": "left", "light": values}, index=[f"i{k}" for k in range(6)])
    schema = Schema([Attribute("shape", values=("left",)), Attribute("light", "continuous")], "shape", ["light"])
    data = ArrayDataset(np.ascontiguousarray(images), table, schema.fit(table))
    known = Inputs(
        data, data, data, None, inputs().graph, inputs().grouper, "", {"light": lambda x: x[:, 0, 0, 0].astype(float)}
    )
    acts: list[Intervention] = [do(light=value) for value in (10.0, 20.0, 30.0, 90.0, 90.0, 90.0)]
    wanted = table.assign(light=[10.0, 20.0, 30.0, 90.0, 90.0, 90.0])
    made = np.full((6, 4, 4, 3), 85, np.uint8)
    row = measured_errors(known, "light", acts, wanted, table, made, data.images, data.images)
    assert row == {"intervened": True, "n": 3, "mae": 5.0, "mae_unchanged": 40.0, "mae_real": 0.0}
    still = measured_errors(known, "light", [do(light=10.0)] * 6, table, table, made, data.images, data.images)
    assert (still["n"], still["mae"], still["mae_unchanged"]) == (0, None, None)


def test_images_whose_value_is_not_known_do_not_count() -> None:
    before = pd.DataFrame({"a": ["r", None, "g", "g"], "t": [1.0, np.nan, 3.0, 4.0]})
    after = pd.DataFrame({"a": ["g", "g", "g", "r"], "t": [1.0, np.nan, np.nan, 4.0]})
    acts: list[Intervention] = [do(a=value) for value in after["a"]]
    intervened, counted = counted_rows("a", acts, after, before)
    assert (intervened, counted.tolist()) == (True, [True, False, False, True])
    intervened, counted = counted_rows("t", acts, after, before)
    assert (intervened, counted.tolist()) == (False, [True, False, False, True])


def test_losses_of_a_folder_are_asked_for_in_vain(birds: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, evaluate={"loss_images": 50})
    assert call(capsys, "evaluate", recipe, "--out", tmp_path / "out", "--json").code == 0
    assert "cannot be made unconfounded: no losses are measured" in caplog.text
    figures = json.loads((tmp_path / "out" / "evaluation" / "figures.json").read_text())
    assert figures["losses"] is None
    assert figures["leaks"]["original_attribute"] == {"background": None}  # 36 sources are too few
