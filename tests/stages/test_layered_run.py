"""Runs with mechanisms that need no training, by the command line: layers, functions, both; fully confounded data; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call, merged

from cfaug.cli import main
from cfaug.data.images import read_image, read_mask
from cfaug.offline import ShardReader

LAYERS = {"background": ["ground"], "foreground": ["colour"]}


def recipe(path: Path, root: Path, **changes: Any) -> Path:
    content = {
        "name": "scenes",
        "data": {"source": "folder", "root": str(root), "masks": "mask"},
        "attributes": {"target": "shape", "spurious": ["ground", "colour"]},
        "graph": "shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image",
        "decoder": {"kind": "layered", "layers": LAYERS},
        "plan": {"per_image": 1, "null_fraction": 0},
        "generate": {"workers": 0, "samples_per_shard": 20, "batch_size": 16},
        "train": {"methods": ["erm", "counterfactuals_only", "cfaug"], "seeds": [0], "epochs": 1, "null_p": 0},
        "evaluate": {"images": 12, "cycles": 2},
    }
    path.write_text(yaml.safe_dump(merged(content, changes), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def finished(scenes: Path) -> Path:
    """A finished run with given masks."""
    place = scenes.parent
    assert main(["run", str(recipe(place / "recipe.yaml", scenes)), "--out", str(place / "out"), "--no-progress"]) == 0
    return place / "out"


def test_every_sample_keeps_its_object_or_its_ground(finished: Path, scenes: Path) -> None:
    reader = ShardReader(finished / "shards")
    table = pd.read_csv(scenes / "metadata.csv").set_index("file_name")
    assert len(reader) == 32
    for i in range(len(reader)):
        record, made = reader.record(i), reader.image(i)
        source = read_image(scenes / record["source_key"])
        mask = read_mask(scenes / table.loc[record["source_key"], "mask"])
        assert record["attributes"]["shape"] == record["factual"]["shape"]
        assert set(record["do"]) == {"ground", "colour"}
        assert not np.array_equal(made[mask == 0], source[mask == 0])
        colour = made[mask == 255].mean(0)
        assert (colour[0] > colour[2]) == (record["do"]["colour"] == "red")


def test_the_report_speaks_of_masks_outlines_and_rims(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "The masks that look worst" in page
    assert "Masks (given)" in page
    figures = json.loads((finished / "evaluation" / "figures.json").read_text())
    assert figures["composition_l1"] == 0
    assert figures["masks"]["empty"] == 0


def test_the_same_shards_again_in_a_new_run(finished: Path, scenes: Path, tmp_path: Path) -> None:
    again = tmp_path / "out"
    assert (
        main(
            [
                "generate",
                str(scenes.parent / "recipe.yaml"),
                "--out",
                str(again),
                "--no-progress",
                "--generate.workers=2",
            ]
        )
        == 0
    )
    for file in sorted((finished / "shards").glob("*.tar")):
        assert (again / "shards" / file.name).read_bytes() == file.read_bytes()


def test_diagnose_advises_a_mechanism_for_each_attribute(finished: Path) -> None:
    said = json.loads((finished / "diagnosis.json").read_text())["decoder"]
    assert "layers: {background: [ground]}" in next(line for line in said if line.startswith("ground"))
    assert "layers: {foreground: [colour]}" in next(line for line in said if line.startswith("colour"))


def test_masks_that_are_made_are_kept(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe(
        tmp_path / "r.yaml",
        scenes,
        decoder={"mask": {"from": "grabcut"}, "layers": {"background": ["ground", "colour"], "foreground": []}},
    )
    answer = call(capsys, "generate", made, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 32


def test_fully_confounded_data_run_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every training cell off the diagonal is empty: the real images of the mixture are left out, and nothing is selected by group."""
    root = write_folder(tmp_path / "data", rho=1.0)
    made = recipe(tmp_path / "r.yaml", root, train={"selection": "last"})
    answer = call(capsys, "run", made, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["erm", "counterfactuals_only", "cfaug"]
    assert {row["selection"] for row in rows} == {"last epoch"}


def test_invariant_samples_are_written_read_and_trained_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tmp_path / "r.yaml", scenes, plan={"invariant_fraction": 0.4}, gate={"enabled": True})
    out = tmp_path / "out"
    answer = call(capsys, "run", made, "--out", out)
    assert answer.code == 0, answer.err
    reader = ShardReader(out / "shards")
    hiding = [i for i in range(len(reader)) if reader.record(i)["do"] == {"ground": None}]
    assert len(hiding) >= 15
    for i in hiding:
        record = reader.record(i)
        assert record["attributes"] == {**record["factual"], "ground": None}
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["erm", "counterfactuals_only", "cfaug"]
    assert call(capsys, "verify", out, "--regenerate", "10").code == 0
    shown = call(capsys, "inspect", out)
    assert shown.code == 0
    assert f"hidden ground {len(hiding)}" in " ".join(shown.out.split())


def test_only_a_background_is_hidden(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe(tmp_path / "r.yaml", scenes, plan={"invariant_fraction": 0.4, "attributes": ["colour"]})
    answer = call(capsys, "doctor", made)
    assert answer.code == 2
    assert (
        "plan.invariant_fraction: expected an attribute that is intervened on and lives in the background" in answer.err
    )


def test_functions_and_layers_in_one_model(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = {"red": [], "blue": {"frame": {"width": 2, "colour": [0, 0, 255]}}}
    decoder = {
        "kind": "composed",
        "mechanisms": {"ground": "layered", "colour": "functional"},
        "layers": {"background": ["ground"], "foreground": []},
        "functions": {"colour": frame},
    }
    answer = call(capsys, "generate", recipe(tmp_path / "r.yaml", scenes, decoder=decoder), "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    reader = ShardReader(tmp_path / "out" / "shards")
    for i in range(len(reader)):
        edge = reader.image(i)[0]
        assert (edge == (0, 0, 255)).all() == (reader.record(i)["do"]["colour"] == "blue")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder": {"layers": {"background": ["ground"], "foreground": []}}}, "'colour' is in no layer"),
        ({"data": {"masks": None}}, "expected masks in the data, got none"),
        ({"decoder": {"mask": {"from": "onnx", "path": "none.onnx"}}}, "none.onnx cannot be read"),
        ({"decoder": {"kind": "composed", "mechanisms": {"ground": "layered"}}}, "a mechanism for 'colour'"),
        (
            {"decoder": {"kind": "functional", "functions": {"ground": {"lines": [], "dots": []}}}},
            "functions for 'colour'",
        ),
        (
            {
                "decoder": {
                    "kind": "functional",
                    "functions": {"ground": {"lines": [], "dots": ["blur"]}, "colour": {"red": [], "blue": []}},
                }
            },
            "can be undone",
        ),
    ],
)
def test_doctor_refuses_in_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    answer = call(capsys, "doctor", recipe(tmp_path / "r.yaml", scenes, **changes))
    assert answer.code == 2, answer.out
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_attributions_start_grabcut(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = {"from": "grabcut", "prior": "attribution"}
    answer = call(capsys, "fit", recipe(tmp_path / "r.yaml", scenes, decoder={"mask": mask}), "--out", tmp_path / "out")
    # a net that was trained for one epoch may find nothing: then a line says so
    assert answer.code == 0 or "look at the masks" in answer.err, answer.err
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 32
