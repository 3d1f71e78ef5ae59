"""``cfaug suspect`` by the command line: labels alone, columns with a question mark, which nothing uses before somebody confirms them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from helpers.layered import write_folder
from helpers.text_model import save_text_model
from helpers.tiny_run import call

from cfaug.stages import cluster_names


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose grounds follow the shape, a recipe that knows the shape alone, and its suspicions."""
    root = tmp_path_factory.mktemp("suspect")
    write_folder(root / "data", train=80, rho=0.95)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), root / "resnet18.pth")
    content = {
        "name": "labels",
        "data": {"source": "folder", "root": str(root / "data")},
        "attributes": {"target": "shape", "spurious": []},
        "train": {"model": "resnet18", "weights": str(root / "resnet18.pth"), "mode": "frozen"},
    }
    (root / "r.yaml").write_text(yaml.safe_dump(content))
    return root


def test_suspicions_become_columns_with_a_question_mark(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "suspect", place / "r.yaml", "--out", place / "out", "--no-progress")
    assert answer.code == 0, answer.err
    assert "of them suspicious" in answer.out
    assert "clusters of features, stability" in answer.out
    table = pd.read_csv(place / "out" / "suspects.csv", dtype=str)
    assert list(table["file_name"]) == list(pd.read_csv(place / "data" / "metadata.csv")["file_name"])
    suspected = [name for name in table if name.endswith("?")]
    assert "error?" in suspected
    assert len(suspected) > 1
    assert table[suspected].notna().all().all()  # validation and test too
    figures = json.loads((place / "out" / "suspicions.json").read_text())
    assert {one["name"] for one in figures["properties"]} <= {name.removesuffix("?") for name in suspected}
    assert any((place / "out" / "collages").glob("error-*.png"))


def test_nothing_uses_a_suspicion_before_it_is_confirmed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "suspect", place / "r.yaml", "--out", place / "out", "--no-progress")
    content = yaml.safe_load((place / "r.yaml").read_text())
    nothing = call(capsys, "doctor", place / "r.yaml")
    assert nothing.code == 2
    assert "or ask `cfaug suspect RECIPE.yaml`" in nothing.err
    content["attributes"]["spurious"] = ["error?"]
    content["graph"] = "shape <-> error; shape -> image; error -> image"
    content["train"]["methods"] = ["erm", "group_resampling"]
    (place / "s.yaml").write_text(yaml.safe_dump(content))
    refused = call(capsys, "doctor", place / "s.yaml")
    assert refused.code == 2
    assert "'error?' is a suspicion that nobody has confirmed" in refused.err
    table = (place / "out" / "suspects.csv").read_text()
    (place / "data" / "metadata.csv").write_text(table.replace("error?", "error"))
    content["attributes"]["spurious"] = ["error"]
    (place / "s.yaml").write_text(yaml.safe_dump(content))
    content["attributes"]["pseudo"] = ["errors"]
    (place / "s.yaml").write_text(yaml.safe_dump(content))
    assert (
        "attributes.pseudo: expected spurious attributes, got 'errors'; did you mean error"
        in call(capsys, "doctor", place / "s.yaml").err
    )
    content["attributes"]["pseudo"] = ["error"]
    content["train"]["seeds"] = [0]
    (place / "s.yaml").write_text(yaml.safe_dump(content))
    answer = call(capsys, "run", place / "s.yaml", "--out", place / "run", "--no-progress")
    assert answer.code == 0, answer.err
    assert "the groups of error are pseudo-groups" in answer.out
    assert "the groups of error are pseudo-groups" in (place / "run" / "report.html").read_text()


def test_clusters_get_words_where_there_is_a_text_image_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((place / "r.yaml").read_text())
    content["gate"] = {"clip": str(save_text_model(tmp_path))}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    answer = call(capsys, "suspect", tmp_path / "r.yaml", "--out", tmp_path / "out", "--no-progress")
    assert answer.code == 0, answer.err
    figures = json.loads((tmp_path / "out" / "suspicions.json").read_text())
    named = [word for words in figures["names"].values() for word in words.values()]
    assert len(named) == sum(found["count"] for found in figures["clusters"].values())
    assert set(named) <= set(cluster_names.WORDS)
    assert f"more of {named[0]} than the rest" in answer.out
    content["gate"] = {"clip": "nowhere"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    refused = call(capsys, "suspect", tmp_path / "r.yaml", "--out", tmp_path / "out")
    assert refused.code == 2
    assert refused.err.startswith("cfaug: gate.clip: expected a directory that transformers has saved a CLIP model in")


def test_a_cluster_is_called_what_its_images_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        """Images 0 to 9 are of water, the others of sand; all are of birds."""

    labels, clusters = np.repeat([0, 1], [20, 4]), np.array([0] * 10 + [1] * 10 + [0] * 4)

    def scores(reader: object, dataset: object, rows: list[int]) -> np.ndarray:
        said = np.log(np.full((len(rows), 3), [0.8, 0.1, 0.1]))
        for i, row in enumerate(rows):
            said[i] = np.log([0.8, 0.15, 0.05] if row < 10 else [0.8, 0.05, 0.15])
        return said

    monkeypatch.setattr(cluster_names.TextReader, "of_rows", scores)
    found = cluster_names.name_clusters("", Two(), labels, clusters, ["a bird", "water", "sand"])  # type: ignore[arg-type]
    assert {cell: word for cell, (word, _) in found.items()} == {(0, 0): "water", (0, 1): "sand"}
    assert found[0, 0][1] == pytest.approx(np.log(3))
