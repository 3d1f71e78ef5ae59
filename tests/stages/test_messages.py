"""What `run` would refuse, `doctor` says first, in the same line; nothing is fitted before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tiny_run import call, contents, folder_recipe
from PIL import Image


def each_image(change: Callable[[Image.Image, int], Image.Image]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for i, path in enumerate(sorted(root.glob("*.png"))):
            with Image.open(path) as picture:
                changed = change(picture, i)
            changed.save(path)

    return damage


def grey(picture: Image.Image, i: int) -> Image.Image:
    pixels = np.asarray(picture.convert("L")).copy()
    pixels[0] = i  # grey birds must differ as well
    return Image.fromarray(pixels)


def table(change: Callable[[pd.DataFrame], None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        rows = pd.read_csv(root / "metadata.csv", dtype=str)
        change(rows)
        rows.to_csv(root / "metadata.csv", index=False)

    return damage


def copied(root: Path) -> None:
    shutil.copy(root / "bird-00.png", root / "copy.png")
    with (root / "metadata.csv").open("a") as handle:
        handle.write("copy.png,test,land,land,1.0,x\n")


def opposite_groups(rows: pd.DataFrame) -> None:
    train, test = rows["split"] == "train", rows["split"] == "test"
    rows.loc[train, "background"] = rows.loc[train, "species"]
    rows.loc[test, "background"] = rows.loc[test, "species"].map({"land": "water", "water": "land"})


def same(root: Path) -> None:
    pass


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "image too large": (each_image(lambda p, i: p.resize((300, 300))), {}, "expected sides of 4 to 256 px, got 300x300"),
    "webp of grey": (each_image(grey), {"generate": {"image": "webp"}}, "expected png or png-stored for grey images"),
    "one image twice": (copied, {}, "got 1 in two, the first bird-00.png (train), which is copy.png (test)"),
    "no common group": (table(opposite_groups), {}, "at least one group of species and background in both training and test"),
    "option of the engine": (same, {"generate": {"options": {"partition": "gpu"}}}, "unknown option 'partition'"),
    "option of torchrun": (same, {"generate": {"engine": "torchrun", "options": {"a": 1}}}, "the engine torchrun takes none, got a"),
    "destination": (same, {"generate": {"destination": "nowhere://x"}}, "nowhere"),
    "attribute to plan": (same, {"plan": {"attributes": ["place"]}}, "place"),
    "target to plan": (same, {"plan": {"attributes": ["species"]}}, "expected attributes other than the target, got 'species'"),
    "joint value": (same, {"plan": {"joint": [{"background": "snow", "share": 1.0}]}}, "snow"),
    "joint shares": (same, {"plan": {"joint": [{"background": "land", "share": 0.5}]}}, "share"),
    "strategy": (same, {"plan": {"strategy": "counterfactual_pairs"}}, "counterfactual_pairs"),
    "unconfirmed edge": (
        same, {"graph": "species ->? background; species -> image; background -> image"}, "expected confirmed edges, got proposals of a discovery: species ->? background",
    ),
    "cause of the target in the plan": (
        same,
        {"graph": "glow -> species; species -> image; background -> image; glow -> image", "plan": {"attributes": ["glow"]}},
        "the graph says glow -> species",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_doctor_and_run_refuse_alike(case: str, birds: Path, tmp_path: Path, capsys: Any) -> None:
    damage, changes, expected = CASES[case]
    root = Path(shutil.copytree(birds, tmp_path / "birds"))
    damage(root)
    recipe = folder_recipe(tmp_path / "r.yaml", root, **changes)
    said = call(capsys, "doctor", recipe)
    assert expected in said.complaint
    answer = call(capsys, "run", recipe, "--out", tmp_path / "out")
    assert (answer.code, answer.complaint) == (said.code, said.complaint)
    assert set(contents(tmp_path / "out")) <= {"config.yaml", "run.json", "diagnosis.json"}


def test_doctor_names_a_missing_package(recipe: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.stages.recipe_checks.find_spec", lambda name: None)
    text = recipe.read_text().replace("workers: 0", "workers: 0\n  tensorboard: true")
    changed = recipe.with_name("board.yaml")
    changed.write_text(text)
    assert "needs the package tensorboard" in call(capsys, "doctor", changed).complaint


def test_an_empty_test_group_is_said(birds: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    def change(rows: pd.DataFrame) -> None:
        where = (rows["split"] == "test") & (rows["species"] == "water") & (rows["background"] == "land")
        rows.loc[where, "split"] = "val"

    root = Path(shutil.copytree(birds, tmp_path / "birds"))
    table(change)(root)
    recipe = folder_recipe(tmp_path / "r.yaml", root, train={"methods": ["erm"]})
    answer = call(capsys, "run", recipe, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "1 of 4 test groups of background are empty (first: species=water,background=land)" in caplog.text
    assert "1 of 4 groups have no test image and take no part: species=water,background=land" in answer.out
    assert "groups have no test image" in (tmp_path / "out" / "report.html").read_text()
