"""A folder of photographs with a pretrained net, frozen, by the command line: a table, a second run from kept features, one-line refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.tiny_run import call, folder, folder_recipe

FROZEN: dict[str, Any] = {
    "train": {
        "model": "resnet18",
        "mode": "frozen",
        "seeds": [0, 1],
        "methods": ["erm", "group_resampling", "dfr", "oracle"],
    },
    "data": {"size": 32, "workers": 0},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """recipe.yaml of a frozen run over birds, with an oracle folder; its run in out/."""
    place = tmp_path_factory.mktemp("frozen")
    root = folder(place / "birds")
    other = folder(place / "oracle", 90)
    for path in other.glob("bird-0*.png"):  # no image of the two folders is the same
        path.write_bytes((other / "bird-80.png").read_bytes())
    recipe = folder_recipe(place / "recipe.yaml", root, **FROZEN)
    text = recipe.read_text().replace("mode: frozen", f"mode: frozen\n  weights: {weights}")
    recipe.write_text(text.replace("source: folder", f"source: folder\n  oracle: {other}"))
    return place


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_frozen_run_makes_a_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "run", made / "recipe.yaml", "--out", made / "out")
    assert answer.code == 0, answer.err
    assert "take " in answer.out  # the advice
    found = rows(made / "out")
    assert [(r["method"], r["seed"]) for r in found] == [
        (m, s) for s in (0, 1) for m in ("erm", "group_resampling", "dfr", "oracle")
    ]
    assert len({r["backbone"] for r in found}) == 1
    assert {r["selection"] for r in found} == {"worst-group validation accuracy"}
    page = (made / "out" / "report.html").read_text()
    assert "Do you need counterfactuals?" in page
    assert "brought to 32x32" in page


def test_more_methods_and_seeds_compute_no_feature(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, "run", made / "recipe.yaml", "--out", made / "out")
    from cfaug.train.features import FeatureStore

    monkeypatch.setattr(FeatureStore, "_compute", lambda *given: pytest.fail("a feature was computed again"))
    more = "--train.methods=[erm, group_resampling, subg, jtt, dfr, oracle]"
    answer = call(capsys, "run", made / "recipe.yaml", "--out", made / "out", more, "--train.seeds=[0, 1, 2]")
    assert answer.code == 0, answer.err
    assert len(rows(made / "out")) == 18


def test_doctor_tells_near_duplicates_where_features_are(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "run", made / "recipe.yaml", "--out", made / "out")
    assert "near-duplicates" not in call(capsys, "doctor", made / "recipe.yaml").out
    answer = call(capsys, "doctor", made / "out")
    assert answer.code == 0, answer.err
    assert "near-duplicates" in answer.out


def test_counterfactuals_stand_beside_the_baselines(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = "--train.methods=[erm, cfaug, cfaug+dfr, cfaug+consistency, counterfactuals_only, ffr]"
    answer = call(
        capsys, "run", made / "recipe.yaml", "--out", made / "ours", methods, "--train.seeds=[0]", "--data.size=16"
    )
    assert answer.code == 0, answer.err
    assert [r["method"] for r in rows(made / "ours")][1:3] == ["cfaug", "cfaug+dfr"]
    assert call(capsys, "verify", made / "ours").code == 0
    assert call(capsys, "verify", made / "ours", "--regenerate", "4").code == 0


def test_other_weights_do_not_mix_into_one_table(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call(capsys, "run", made / "recipe.yaml", "--out", made / "out")
    torch.manual_seed(1)
    (tmp_path / "w").mkdir()
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w" / "resnet18.pth")
    again = f"--train.weights={tmp_path / 'w' / 'resnet18.pth'}"
    answer = call(capsys, "run", made / "recipe.yaml", "--out", made / "out", again, "--train.seeds=[0, 1, 2, 3]")
    assert "other weights" in answer.complaint


MESSAGES = {
    "no weights": ("--train.weights=null", "train.mode is frozen, but train.weights"),
    "augmented": ("--train.augment=standard", "write augment: none"),
    "a method's setting": ("--train.method_settings={jtt: {upweigth: 3}}", "did you mean upweight"),
    "a method's value": ("--train.method_settings={jtt: {upweight: many}}", "expected a number from 0 up"),
    "an unknown method": ("--train.method_settings={jttt: {}}", "did you mean jtt"),
    "a size": ("--data.size=[32, 32, 3]", "data.size"),
    "a selection": ("--train.selection=worst", "did you mean worst_group"),
    "an oracle": ("--data.oracle=/nowhere", "does not exist"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_cannot_be_is_one_line(made: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    option, fragment = MESSAGES[name]
    assert fragment in call(capsys, "train", made / "recipe.yaml", "--out", made / "never", option).complaint
