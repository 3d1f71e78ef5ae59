"""The command line: every mistake a user can make gets one line and a code; what is printed with --json parses."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.tiny_run import Answer, call, contents, folder, folder_recipe
from PIL import Image

from cfaug import __version__
from cfaug.cli import main
from cfaug.command_line import STAGES
from cfaug.config import load_recipe
from cfaug.shipped_recipes import shipped_recipes


@pytest.fixture
def own(birds: Path, tmp_path: Path) -> Path:
    """A copy of the source to damage."""
    return Path(shutil.copytree(birds, tmp_path / "birds"))


# -- bad input -----------------------------------------------------------------------------------------------------------


def table(root: Path, change: Callable[[pd.DataFrame], object]) -> None:
    """Rewrite metadata.csv."""
    rows = pd.read_csv(root / "metadata.csv", dtype=str)
    change(rows)
    rows.to_csv(root / "metadata.csv", index=False)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_validation_of_water(root: Path) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[(rows["split"] == "val") & (rows["species"] == "water"), "split"] = "test"

    table(root, change)


BAD_FILES: dict[str, tuple[Callable[[Path], object], int, tuple[str, ...]]] = {
    "root missing": (shutil.rmtree, 2, ("does not exist", "metadata.csv")),
    "metadata.csv missing": (lambda root: (root / "metadata.csv").unlink(), 2, ("metadata.csv", "not found")),
    "column missing": (
        lambda root: table(root, lambda rows: rows.rename(columns={"background": "backgrounds"}, inplace=True)),
        2,
        ("a column 'background'", "did you mean backgrounds?"),
    ),
    "image truncated": (lambda root: halve(root / "bird-17.png"), 1, ("bird-17.png", "replace the file")),
    "image of a test row unreadable": (lambda root: (root / "bird-59.png").write_text("hello"), 1, ("bird-59.png",)),
    "image missing": (lambda root: (root / "bird-03.png").unlink(), 1, ("bird-03.png", "no such file")),
    "split value": (
        lambda root: table(root, lambda rows: rows.__setitem__("split", ["dev", *rows["split"][1:]])),
        1,
        ("bird-00.png", "train, val, test", "'dev'"),
    ),
    "training split empty": (
        lambda root: table(root, lambda rows: rows.__setitem__("split", rows["split"].replace("train", "test"))),
        1,
        ("training split is empty", "mark at least one row train"),
    ),
    "class not in validation": (without_validation_of_water, 1, ("got none of species=water", "split val")),
    "number that is none": (
        lambda root: table(root, lambda rows: rows.__setitem__("glow", ["warm", *rows["glow"][1:]])),
        1,
        ("'glow'", "bird-00.png", "'warm'"),
    ),
    "not a table": (lambda root: (root / "metadata.csv").write_bytes(b"\x00\xff\xfe"), 1, ("metadata.csv",)),
}


@pytest.mark.parametrize("case", list(BAD_FILES))
def test_bad_files(case: str, own: Path, tmp_path: Path, capsys: Any) -> None:
    damage, code, expected = BAD_FILES[case]
    recipe = folder_recipe(tmp_path / "r.yaml", own)
    damage(own)
    for command in ("run", "diagnose"):
        answer = call(capsys, command, recipe, "--out", tmp_path / "out")
        assert answer.code == code, answer.err
        for words in expected:
            assert words in answer.complaint
        assert answer.out == ""
    asked = call(capsys, "doctor", recipe)
    assert (asked.code, asked.complaint) == (code, answer.complaint)
    assert answer.complaint.removeprefix("cfaug: ") in asked.out
    assert not (tmp_path / "out").exists()


BAD_RECIPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cycle": ({"graph": "species -> background; background -> species; species -> image"}, ("cycle, got background -> species -> background",)),
    "unknown attribute in the graph": (
        {"graph": "species -> image; background -> image; backgroud -> image"},
        ("a column 'backgroud'", "background"),
    ),
    "spurious attribute causes the target": (
        {"graph": "background -> glow; glow -> species; species -> image; background -> image"},
        ("background -> glow -> species",),
    ),
    "spurious attribute not in the graph": ({"graph": "species -> image; glow -> image"}, ("'background' is not in the graph",)),
    "no image in the graph": ({"graph": "species <-> background"}, ("has no image",)),
    "no path to the image": ({"graph": "species -> image; background; glow -> image"}, ("no path to the image",)),
    "image has a child": ({"graph": "image -> species; background -> image"}, ("expected image as the last node",)),
    "graph that cannot be read": ({"graph": "species => image"}, ("species => image",)),
    "unknown key": ({"trian": {}}, ("'trian'", "did you mean train?")),
    "unknown method": ({"train": {"methods": ["erm", "cfaugg"]}}, ("'cfaugg'", "did you mean cfaug")),
    "unknown classifier": ({"train": {"model": "small_cn"}}, ("'small_cn'", "did you mean small_cnn?")),
    "unknown device": ({"decoder": {"device": "cpux"}}, ("decoder.device", "'cpux'")),
    "oracle of a folder": ({"train": {"methods": ["erm", "oracle"]}}, ("cannot be made unconfounded",)),
    "continuous target": ({"attributes": {"target": "glow", "kinds": {"glow": "continuous"}}}, ("continuous",)),
    "unknown kind": ({"attributes": {"kinds": {"glow": "real"}}}, ("kind", "'real'")),
    "unknown source": ({"data": {"source": "foldr"}}, ("'foldr'", "did you mean folder?")),
    "option of another source": ({"data": {"rho": 0.5}}, ("no option 'rho'",)),
    "no root": ({"data": {"root": None}}, ("needs a root",)),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_RECIPES))
def test_bad_recipes(case: str, birds: Path, tmp_path: Path, capsys: Any) -> None:
    changes, expected = BAD_RECIPES[case]
    recipe = folder_recipe(tmp_path / "r.yaml", birds, **changes)
    answer = call(capsys, "run", recipe, "--out", tmp_path / "out")
    assert answer.code == 2
    for words in expected:
        assert words in answer.complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "COMMAND"),
        (["rnu", "r.yaml"], "invalid choice: 'rnu'"),
        (["run"], "RECIPE.yaml"),
        (["run", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["run", "r.yaml", "--train.epoch=1"], "did you mean train.epochs"),
        (["run", "r.yaml", "--train.epochs"], "needs a value"),
        (["run", "r.yaml", "stray"], "unexpected argument 'stray'"),
        (["run", "r.yaml", "--seed", "x"], "--seed"),
        (["run", "r.yaml", "--seed", "-3"], "seed: expected a whole number from 0 to 9007199254740991, got -3"),
        (["run", "r.yaml", "--resume", "--overwrite"], "not allowed with"),
        (["run", "r.yaml", "--overwrit"], "--overwrit"),
        (["verify"], "DIR"),
        (["verify", "x", "--deep"], "does not take '--deep'"),
        (["recipes", "cp", "nothing"], "demo"),
        (["recipes", "cp"], "no name"),
        (["recipes", "rm"], "invalid choice: 'rm'"),
    ],
)
def test_wrong_usage(
    words: list[str], expected: str, birds: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_recipe(tmp_path / "r.yaml", birds)
    answer = call(capsys, *words)
    assert answer.code == 2
    assert expected in answer.complaint
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml"}


def test_an_out_that_cannot_be(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds)
    (tmp_path / "file").write_text("x")
    assert "got the file" in call(capsys, "plan", recipe, "--out", tmp_path / "file").complaint
    assert "Not a directory" in call(capsys, "plan", recipe, "--out", tmp_path / "file" / "below").complaint
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("host: localhost\n")
    before = contents(tmp_path)
    answer = call(capsys, "plan", recipe, "--out", tmp_path / "other")
    assert answer.code == 2
    assert "no config.yaml of ours" in answer.complaint
    assert (
        "no config.yaml of ours" in call(capsys, "plan", recipe, "--out", tmp_path / "other", "--overwrite").complaint
    )
    assert contents(tmp_path) == before


def test_an_empty_group_in_validation_only_warns(own: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    def change(rows: pd.DataFrame) -> None:
        where = (rows["split"] == "val") & (rows["species"] == "water") & (rows["background"] == "land")
        rows.loc[where, "split"] = "test"

    table(own, change)
    recipe = folder_recipe(tmp_path / "r.yaml", own, train={"methods": ["erm"]})
    assert call(capsys, "train", recipe, "--out", tmp_path / "out").code == 0
    assert "1 of 4 validation groups of background are empty (first: species=water,background=land)" in caplog.text


def test_a_real_process_prints_one_line_and_its_code(tmp_path: Path) -> None:
    words = ["run", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "cfaug", *words], capture_output=True, text=True, check=False)
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.code == 2
    assert "none.yaml" in answer.complaint
    assert not (tmp_path / "out").exists()


def test_output_that_is_not_utf8_shows_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "birds")
    table(root, lambda rows: rows.replace({"species": {"land": "M\u00f6we", "water": "\u9ce5"}}, inplace=True))
    recipe = folder_recipe(tmp_path / "r.yaml", root)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["diagnose", str(recipe), "--out", str(tmp_path / "out"), "--no-progress"]) == 0
    assert (
        main(["plan", str(recipe), "--out", str(tmp_path / "out"), "--plan.joint=[{background: \u9ce5, share: 1}]"])
        == 2
    )
    for stream in streams:
        stream.flush()
    said, complained = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    assert rb"M\xf6we" in said
    assert rb"\u9ce5" in complained


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read_are_named(own: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", own)
    for path in (own / "metadata.csv", recipe):
        path.chmod(0)
        complaint = call(capsys, "plan", recipe, "--out", tmp_path / "out").complaint
        assert "ermission denied" in complaint
        assert path.name in complaint
        path.chmod(0o600)


# -- what is there to see ------------------------------------------------------------------------------------------------


def test_print_config_is_a_recipe(birds: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = folder_recipe(tmp_path / "r.yaml", birds)
    answer = call(
        capsys, "run", recipe, "--print_config", "--seed=7", "--train.epochs", "3", "--data.root", "else where"
    )
    assert (answer.code, answer.err) == (0, "")
    (tmp_path / "again.yaml").write_text(answer.out)
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.seed, again.train.epochs, again.data.root, again.decoder.max_steps) == (7, 3, "else where", 5)
    as_json = call(capsys, "demo", "--print_config", "--json")
    assert json.loads(as_json.out)["name"] == "demo"
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", "again.yaml"}


def test_without_out_a_run_goes_to_shards(
    birds: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_recipe(tmp_path / "r.yaml", birds)
    assert call(capsys, "plan", "r.yaml").code == 0
    assert (tmp_path / "shards" / "birds" / "plan" / "plan.json").exists()


@pytest.mark.parametrize("command", list(STAGES))
def test_every_stage_of_a_finished_run_prints_json_and_text(
    command: str, finished: Path, recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    if command == "discover":  # the one stage whose file a finished run does not have
        finished = Path(shutil.copytree(finished, tmp_path / "out"))
    fewer = ["--discover.bootstraps=0"] * (command == "discover")  # 36 images are too few to resample
    answer = call(capsys, command, recipe, "--out", finished, "--json", *fewer)
    assert answer.code == 0
    json.loads(answer.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    text = call(capsys, command, recipe, "--out", finished, *fewer)
    assert text.code == 0
    assert text.out.strip()


def test_the_table_of_a_run(finished: Path, recipe: Path, capsys: Any) -> None:
    text = call(capsys, "run", recipe, "--out", finished).out
    assert "erm" in text
    assert "cfaug" in text
    assert f"report   {finished / 'report.html'}" in text


def test_verify(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    answer = call(capsys, "verify", finished, "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert (found["ok"], found["counts"]["samples"], found["problems"]) == (True, 51, [])
    assert call(capsys, "verify", finished / "shards").code == 0
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shard = copy / "shards" / "cf-train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    answer = call(capsys, "verify", copy, "--json")
    assert answer.code == 1
    assert "cf-train-000001.tar" in json.loads(answer.out)["problems"][0]
    assert "NOT ok" in call(capsys, "verify", copy).out
    answer = call(capsys, "verify", tmp_path)
    assert answer.code == 1
    assert "manifest.jsonl" in answer.complaint


def test_inspect(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    found = json.loads(call(capsys, "inspect", finished, "--json").out)
    assert (found["shards"], found["samples"], found["sources"]) == (3, 51, 36)
    text = call(capsys, "inspect", finished / "shards", "--contact-sheet", tmp_path / "sheet.png").out
    assert re.search(r"sources +36, 1\.4 images each", text)
    assert str(tmp_path / "sheet.png") in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 100
    assert call(capsys, "inspect", tmp_path).code == 1


def test_compare(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    found = json.loads(call(capsys, "compare", finished, finished / "results.jsonl", "--json").out)
    assert {len(rows) for rows in found.values()} == {2}
    text = call(capsys, "compare", finished, finished / "results.jsonl").out
    assert text.count("cfaug") >= 2
    said = call(capsys, "compare", finished, finished / "results.jsonl", "--out", tmp_path / "page.html").out
    assert str(tmp_path / "page.html") in said
    assert "Runs side by side" in (tmp_path / "page.html").read_text(encoding="utf-8")
    answer = call(capsys, "compare", finished, tmp_path)
    assert answer.code == 1
    assert "results.jsonl" in answer.complaint


def test_recipes(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(shipped_recipes()) >= {"demo", "double_colored_mnist", "folder"}
    assert json.loads(call(capsys, "recipes", "ls", "--json").out) == sorted([*shipped_recipes(), "loops"])
    assert "demo" in call(capsys, "recipes", "ls").out.splitlines()
    for name in shipped_recipes():
        assert call(capsys, "recipes", "cp", name).code == 0
        assert call(capsys, "run", f"{name}.yaml", "--print_config").code == 0
        assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["name"] == name
    assert call(capsys, "recipes", "cp", "loops").code == 0
    assert (tmp_path / "loops" / "plain_pytorch" / "after.py").is_file()
    assert "exists already" in call(capsys, "recipes", "cp", "loops").complaint
    (tmp_path / "demo.yaml").write_text("mine")
    answer = call(capsys, "recipes", "cp", "demo")
    assert answer.code == 2
    assert "exists already" in answer.complaint
    assert (tmp_path / "demo.yaml").read_text() == "mine"


def test_help_and_version_end_well(capsys: Any) -> None:
    for words in (["--version"], ["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    assert f"cfaug {__version__}" in capsys.readouterr().out


def test_an_interruption_says_that_the_work_is_kept(
    finished: Path, recipe: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfaug.stages.run_recipe", interrupted)
    answer = call(capsys, "run", recipe, "--out", finished)
    assert answer.code == 130
    assert "the same command continues" in answer.err


def test_splits_of_another_size_and_classes_without_training_images_are_named(tmp_path: Path, capsys: Any) -> None:
    root = folder(tmp_path / "birds")
    with Image.open(root / "bird-40.png") as picture:
        size = picture.size
    table = pd.read_csv(root / "metadata.csv")
    for name in table.file_name[table.split == "val"]:
        with Image.open(root / name) as picture:
            picture.resize((size[0] * 2, size[1])).save(root / name)
    answer = call(capsys, "run", folder_recipe(tmp_path / "a.yaml", root), "--out", tmp_path / "out")
    assert (answer.code, (tmp_path / "out").exists()) == (1, False)
    assert "val" in answer.complaint

    root = folder(tmp_path / "more")
    table = pd.read_csv(root / "metadata.csv")
    table.loc[table.split != "train", "species"] = "owl"
    table.to_csv(root / "metadata.csv", index=False)
    answer = call(capsys, "run", folder_recipe(tmp_path / "b.yaml", root), "--out", tmp_path / "out")
    assert (answer.code, (tmp_path / "out").exists()) == (1, False)
    assert "owl" in answer.complaint


@pytest.mark.parametrize(("methods", "null_p"), [("[cfaug]", 0.1), ("[null_control]", 0.0)])
def test_reconstructions_that_nobody_planned_are_a_contradiction(
    tmp_path: Path, capsys: Any, methods: str, null_p: float
) -> None:
    recipe = folder_recipe(tmp_path / "a.yaml", folder(tmp_path / "birds"), plan={"null_fraction": 0.0})
    answer = call(
        capsys, "run", recipe, f"--train.methods={methods}", f"--train.null_p={null_p}", "--out", tmp_path / "out"
    )
    assert answer.code == 2
    assert "null_fraction" in answer.complaint
