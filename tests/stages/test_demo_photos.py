"""``cfaug demo --photos DIR``: columns that are found or named, one line where they are not, and a run to its table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call

FAST = ("--train.epochs=1", "--train.seeds=[0]", "--generate.workers=0", "--evaluate.images=12", "--data.size=16")
NAMED = ("--attributes.target=shape", "--attributes.spurious=[ground]")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture
def garments(scenes: Path, tmp_path: Path) -> Path:
    """The same with the names that need no telling."""
    root = Path(shutil.copytree(scenes, tmp_path / "garments"))
    table = pd.read_csv(root / "metadata.csv")
    table.rename(columns={"shape": "garment", "ground": "scene"}).to_csv(root / "metadata.csv", index=False)
    return root


def config(capsys: Any, *words: str | Path) -> dict[str, Any]:
    answer = call(capsys, "demo", "--photos", *words, "--print_config")
    assert answer.code == 0, answer.err
    return yaml.safe_load(answer.out)


def test_columns_that_are_named_reach_graph_and_layers(scenes: Path, capsys: Any) -> None:
    found = config(capsys, scenes, *NAMED)
    assert (found["attributes"]["target"], found["attributes"]["spurious"]) == ("shape", ["ground"])
    assert found["graph"] == "shape <-> ground; ground -> image; shape -> image"
    assert found["decoder"]["layers"] == {"background": ["ground"]}
    assert found["data"]["root"] == str(scenes)


def test_the_usual_names_need_no_telling(garments: Path, capsys: Any, caplog: Any) -> None:
    found = config(capsys, garments)
    assert (found["train"]["model"], found["train"]["mode"], found["data"]["size"]) == ("small_cnn", "finetune", 32)
    assert set(found["train"]["methods"]) == {"erm", "group_resampling", "cfaug", "dfr"}
    assert [line for line in caplog.messages if line.startswith("no --train.weights")]
    found = config(capsys, garments, "--train.weights=w.pth", "--train.seeds=[5]")
    assert (found["train"]["model"], found["train"]["mode"], found["data"]["size"]) == ("mobilenet_v2", "frozen", 128)
    assert (found["train"]["seeds"], found["gate"]["enabled"]) == ([5], None)


def test_what_cannot_be_told_is_asked_for_in_one_line(scenes: Path, tmp_path: Path, capsys: Any) -> None:
    for words, expected in {
        (): ("expected the columns garment, scene, got shape", "--attributes.target=COLUMN"),
        (*NAMED, "--data.masks=outline"): ("a column 'outline'", "--data.masks=COLUMN"),
        ("--attributes.target=shape", "--attributes.spurious=[sky]"): ("shape, sky",),
    }.items():
        answer = call(capsys, "demo", "--photos", scenes, *words, "--out", tmp_path / "out")
        assert answer.code == 2
        for part in expected:
            assert part in answer.complaint
    assert "does not exist" in call(capsys, "demo", "--photos", tmp_path / "none").complaint
    assert not (tmp_path / "out").exists()


def test_it_ends_in_a_table_and_a_report(scenes: Path, tmp_path: Path, capsys: Any) -> None:
    answer = call(capsys, "demo", "--photos", scenes, *NAMED, *FAST, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    assert {row["method"] for row in json.loads(answer.out)} == {"erm", "group_resampling", "cfaug", "dfr"}
    assert (tmp_path / "out" / "report.html").exists()
