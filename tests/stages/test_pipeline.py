"""The stages in their directory: everything is written, nothing is done twice, and every failure can be continued."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.tiny_run import SMALL, call, contents, folder_recipe, shard_bytes
from PIL import Image

from cfaug.config import load_recipe
from cfaug.judge.accuracy import FIELDS
from cfaug.offline import Plan, ShardReader, verify
from cfaug.offline.commit import open_destination


def recolour(path: Path) -> None:
    """Change one pixel of an image."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def test_a_run_writes_everything(finished: Path, recipe: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"config.yaml", "run.json", "plan", "model", "shards", "results.jsonl", "report.html"}
    assert names == expected | {
        "diagnosis.json", "evaluation", "assumptions.json", "ASSUMPTIONS.md", "stats.jsonl", "run.lock", "classifiers",
    }  # fmt: skip
    assert not list(finished.rglob("*.partial"))
    assert load_recipe(finished / "config.yaml") == load_recipe(recipe)
    run = json.loads((finished / "run.json").read_text())
    assert run["fingerprint"] == load_recipe(recipe).fingerprint()
    assert set(run) == {"fingerprint", "data", "seed", "versions", "seconds"}
    assert {"fit", "generate", "train", "evaluate"} <= set(run["seconds"])
    assert {"cfaug", "torch", "diffusers", "python"} <= set(run["versions"])
    assert sorted(p.name for p in (finished / "model").iterdir()) == [
        "decoder.json", "decoder.safetensors", "model.json", "scm.json", "scm.safetensors",
    ]  # fmt: skip


def test_the_results_are_the_contract(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [("erm", 0), ("cfaug", 0)]
    for row in rows:
        assert tuple(row) == FIELDS
        assert row["recipe"] == "birds"
        assert (row["split"], row["n"]) == ("test", 12)
        assert row["selection"] == "worst-group validation accuracy"
        assert set(row["groups"]) == {
            f"species={s},background={b}" for s in ("land", "water") for b in ("land", "water")
        }
        assert row["worst_group_accuracy"] == min(g["accuracy"] for g in row["groups"].values())
        low, high = row["worst_group_ci95"]
        assert 0 <= low <= row["worst_group_accuracy"] <= high <= 1


def test_every_source_is_intervened_on_and_nulls_come_on_top(finished: Path) -> None:
    plan = Plan.load(finished / "plan")
    real = [row for row in plan if not row.do.is_null]
    assert sorted(row.source_key for row in real) == [f"bird-{i:02d}.png" for i in range(36)]
    assert len(plan) - len(real) == round(0.3 / 0.7 * 36)
    assert len(ShardReader(finished)) == len(plan)
    assert verify(finished).ok


def test_nothing_but_the_intervened_attribute_differs(finished: Path) -> None:
    reader = ShardReader(finished)
    for i in range(len(reader)):
        record = reader.record(i)
        assert record["attributes"] == {**record["factual"], **record["do"]}
        assert record["split"] == "train"


def test_the_figures_are_strict_json_and_the_report_says_them(finished: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    for path in (finished / "evaluation" / "figures.json", finished / "diagnosis.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    figures = json.loads((finished / "evaluation" / "figures.json").read_text())
    assert figures["images"] == 12
    assert set(figures["attributes"]) == {"species", "background"}
    assert figures["attributes"]["background"]["intervened"]
    assert "groups resampled" in figures["reader_basis"]  # a folder has no unconfounded images to learn from
    assert figures["shortcut_probe"]["factual"] is None  # 36 images are too few to say
    assert 0 <= figures["composition_l1"] <= figures["composition_l1_2_cycles"] + 0.01
    page = (finished / "report.html").read_text()
    assert f"{figures['composition_l1']:.4f}" in page
    assert "There is no oracle" in page
    assert "background &harr; species" in page
    with np.load(finished / "evaluation" / "images.npz") as arrays:
        assert arrays["counterfactual"].shape == (12, 8, 8, 3)


def test_the_same_command_again_does_nothing_new(finished: Path, recipe: Path, capsys: Any) -> None:
    before = contents(finished)
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert call(capsys, "run", recipe, "--out", finished).code == 0
    after = contents(finished)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {"report.html", "shards/.lock"}
    for path in (*(finished / "model").iterdir(), *(finished / "shards").glob("*.tar"), finished / "results.jsonl"):
        assert path.stat().st_mtime_ns == stamps[path]


# what a worker process costs is an import of diffusers; tests/offline has the same law for workers, with a tiny model
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_model_and_a_plan_give_the_same_bytes_elsewhere(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, workers: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("shards", "evaluation", "results.jsonl"))
    answer = call(capsys, "generate", recipe, "--out", out, "--json", f"--generate.workers={workers}")
    assert answer.code == 0
    assert json.loads(answer.out)["written"] == 3
    rows, tars = [], []
    for place in (out, finished):
        rows.append(sorted((place / "shards" / "manifest.jsonl").read_text().splitlines()))
        tars.append({name: digest for name, digest in shard_bytes(place).items() if name.endswith(".tar")})
    assert rows[0] == rows[1]
    assert tars[0] == tars[1]
    assert len(tars[0]) == 3


def test_two_fits_of_one_recipe_are_one_model(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    """max_steps is set, so the whole run is a function of recipe and seed, wherever it is written."""
    assert call(capsys, "fit", recipe, "--out", tmp_path / "again").code == 0
    ours, theirs = (json.loads((out / "model" / "model.json").read_text()) for out in (finished, tmp_path / "again"))
    assert ours == theirs
    answer = call(capsys, "plan", recipe, "--out", tmp_path / "again", "--json")
    assert json.loads(answer.out)["plan"] == Plan.load(finished / "plan").digest


def test_real_methods_alone_need_no_counterfactuals(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, train={"methods": ["erm"]})
    assert call(capsys, "run", recipe, "--out", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.yaml",
        "run.json",
        "run.lock",
        "diagnosis.json",
        "results.jsonl",
        "report.html",
        "classifiers",
    }


def test_a_continuous_spurious_attribute(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, attributes={"spurious": ["background", "glow"]})
    assert call(capsys, "run", recipe, "--out", tmp_path / "out").code == 0
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[-1])
    assert {f"species=land,glow=q{k}" for k in (1, 2, 3, 4)} <= set(row["groups"])
    reader = ShardReader(tmp_path / "out")
    moved = [reader.record(i)["do"] for i in range(len(reader)) if reader.record(i)["do"]]
    assert all(set(act) == {"background", "glow"} and math.isfinite(act["glow"]) for act in moved)


def test_overwrite_starts_over_and_touches_nothing_else(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "notes.txt").write_text("mine")
    answer = call(capsys, "diagnose", recipe, "--out", out, "--overwrite", "--seed=4")
    assert answer.code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"config.yaml", "run.json", "run.lock", "diagnosis.json", "notes.txt"}
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (["--plan.strategy=flip"], True),
        pytest.param(["--generate.image=webp", "--generate.batch_size=8"], True, marks=pytest.mark.slow),
        (["--decoder.max_steps=6"], False),
    ],
)
def test_another_plan_or_other_shards_do_not_cost_the_model(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, changes: list[str], kept: bool
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    assert "or --overwrite" in call(capsys, "generate", recipe, "--out", out, *changes).complaint
    before = {path.name: path.stat().st_mtime_ns for path in (out / "model").iterdir()}
    answer = call(capsys, "generate", recipe, "--out", out, "--overwrite", *changes)
    assert answer.code == 0, answer.err
    assert ({path.name: path.stat().st_mtime_ns for path in (out / "model").iterdir()} == before) == kept
    assert verify(out).ok
    assert not (out / "results.jsonl").exists()
    assert (verify(out).counts["samples"], call(capsys, "verify", out, "--regenerate", "4").code) == (51, 0)
    assert call(capsys, "generate", recipe, "--out", out, *changes).code == 0
    assert call(capsys, "fit", recipe, "--out", out, "--overwrite", *changes).code == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "model").iterdir()} != before


def test_other_images_cost_the_model(finished: Path, birds: Path, tmp_path: Path, capsys: Any) -> None:
    out, images = tmp_path / "out", tmp_path / birds.name
    shutil.copytree(finished, out)
    shutil.copytree(birds, images)
    other = folder_recipe(tmp_path / "r.yaml", images)
    recolour(images / "bird-00.png")
    before = contents(out / "model")
    assert call(capsys, "generate", other, "--out", out, "--overwrite").code == 0
    assert contents(out / "model") != before


@pytest.mark.parametrize("command", ["plan", "run"])
def test_overwrite_takes_nothing_from_a_process_that_is_writing(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, command: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {name: digest for name, digest in contents(out).items() if ".lock" not in name}
    with open_destination(out).session():
        complaint = call(capsys, command, recipe, "--out", out, "--overwrite", "--seed=7").complaint
    assert "another process" in complaint
    assert {name: digest for name, digest in contents(out).items() if ".lock" not in name} == before


@pytest.mark.parametrize("damage", ["[]", '{"format": 1}'])
def test_an_unreadable_plan_is_drawn_again(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    header = out / "plan" / "plan.json"
    whole = header.read_bytes()
    header.write_text(damage)
    assert call(capsys, "diagnose", recipe, "--out", out).code == 0  # it looks, and leaves the plan as it is
    assert "plan is drawn again" in caplog.text
    assert header.read_text() == damage
    assert (out / "diagnosis.json").read_bytes() == (finished / "diagnosis.json").read_bytes()
    assert call(capsys, "plan", recipe, "--out", out).code == 0
    assert header.read_bytes() == whole
    assert call(capsys, "generate", recipe, "--out", out).code == 0


def test_sigterm_ends_like_an_interrupt(recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def preempted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("cfaug.stages.plan", preempted)
    answer = call(capsys, "plan", recipe, "--out", tmp_path / "out")
    assert (answer.code, "the same command continues" in answer.err) == (143, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_overwrite_does_not_clear_a_directory_that_is_no_run(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.pt").write_text("years of work")
    before = contents(tmp_path)
    complaint = call(capsys, "fit", recipe, "--out", tmp_path, "--overwrite").complaint
    assert "no config.yaml of ours" in complaint
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"epochs": 2}}, "train.epochs was 1, now 2"),
        ({"decoder": {"max_steps": 6}}, "decoder.max_steps was 5, now 6"),
        ({"seed": 1}, "seed was 0, now 1"),
    ],
)
def test_another_configuration_is_refused_and_named(
    finished: Path, birds: Path, tmp_path: Path, capsys: Any, changes: dict[str, Any], expected: str
) -> None:
    moved = tmp_path / "moved" / birds.name
    shutil.copytree(birds, moved)
    before = contents(finished)
    recipe = folder_recipe(tmp_path / "r.yaml", moved, **changes, **({"generate": {"workers": 1}}))
    answer = call(capsys, "run", recipe, "--out", finished)
    assert answer.code == 2
    assert expected in answer.complaint
    assert contents(finished) == before


def test_the_data_may_move_and_the_workers_change(finished: Path, birds: Path, tmp_path: Path, capsys: Any) -> None:
    moved = tmp_path / "elsewhere" / birds.name
    shutil.copytree(birds, moved)
    recipe = folder_recipe(tmp_path / "r.yaml", moved, generate={"workers": 2})
    answer = call(capsys, "generate", recipe, "--out", finished, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["written"] == 0


@pytest.mark.parametrize("file", ["decoder.safetensors", "scm.json", "model.json"])
def test_a_corrupt_checkpoint(finished: Path, recipe: Path, tmp_path: Path, capsys: Any, file: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("shards", "evaluation", "results.jsonl"))
    content = (out / "model" / file).read_bytes()
    (out / "model" / file).write_bytes(content[: len(content) // 2])
    before = contents(out)
    answer = call(capsys, "generate", recipe, "--out", out)
    assert answer.code == 1
    assert "corrupt" in answer.complaint
    assert contents(out) == before


def test_a_disk_that_fills_up_at_every_stage(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full at one file after the other; each time one line, no half file, and the same command continues."""
    out, real = tmp_path / "out", os.fsync
    full = [""]

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if full[0] and name.startswith(full[0]) and "partial" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("config.yaml", "diagnosis.json", "plan-", "decoder.safetensors", "model.json", "cf-train-000001", "results.jsonl",
                 "images.npz", "figures.json", "report.html"):  # fmt: skip
        full[0] = name
        answer = call(capsys, "run", recipe, "--out", out)
        assert answer.code == 1
        assert re.search("No space left|disk is full", answer.complaint)
        assert not list(out.rglob("*.partial")), name
        assert not [path for path in out.rglob("*") if path.name.startswith(name)], name
        assert name != "config.yaml" or not contents(out)
    full[0] = ""
    assert call(capsys, "run", recipe, "--out", out).code == 0
    assert {k: v for k, v in shard_bytes(out).items() if k.endswith(".tar")} == {
        k: v for k, v in shard_bytes(finished).items() if k.endswith(".tar")
    }
    assert [json.loads(line)["groups"] for line in (out / "results.jsonl").read_text().splitlines()] == [
        json.loads(line)["groups"] for line in (finished / "results.jsonl").read_text().splitlines()
    ]


def test_a_damaged_evaluation_is_made_again(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    figures = (out / "evaluation" / "figures.json").read_text()
    (out / "evaluation" / "images.npz").write_bytes(b"PK\x03\x04 no")
    answer = call(capsys, "evaluate", recipe, "--out", out, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["composition_l1"] == json.loads(figures)["composition_l1"]
    assert contents(out / "evaluation") == contents(finished / "evaluation")


@pytest.mark.slow
def test_the_digits_from_beginning_to_end(tmp_path: Path, capsys: Any) -> None:
    graph = "digit <-> foreground; digit <-> background; digit -> image; foreground -> image; background -> image"
    content = {
        "name": "tiny", "data": {"source": "digits"}, "graph": graph, **SMALL,
        "attributes": {"target": "digit", "spurious": ["foreground", "background"]},
        "generate": {"workers": 0, "samples_per_shard": 1000, "batch_size": 100}, "plan": {"per_image": 1, "null_fraction": 0.1},
        "evaluate": {"images": 12, "cycles": 2, "loss_images": 100, "loss_seeds": 1},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    answer = call(capsys, "run", tmp_path / "tiny.yaml", "--out", out, "--json")
    assert answer.code == 0
    rows = json.loads(answer.out)
    assert [row["method"] for row in rows] == ["erm", "cfaug"]
    assert rows[0]["n"] == 3980
    assert len(rows[0]["groups"]) == 200
    figures = json.loads((out / "evaluation" / "figures.json").read_text())
    assert figures["reader_basis"] == "unconfounded images"
    probe = figures["shortcut_probe"]
    assert (
        probe["factual"] > 0.6 > 0.3 > probe["unconfounded"]
    )  # the colours tell the digit, and only in the confounded set
    assert probe["above_unconfounded"] == probe["counterfactual"] - probe["unconfounded"]
    assert all(0 <= found["agreement"] <= 1 for found in figures["attributes"].values())
    assert set(figures["losses"]["losses"]) == {"codec", "mechanism", "leak"}
    assert set(figures["losses"]["accuracy"]["unconfounded"]) == {
        "average",
        "worst by foreground",
        "worst by background",
    }
    assert figures["losses"]["images"] == 100
    assert figures["leaks"]["sources"] == "unconfounded"
    assert figures["leaks"]["original_attribute"]["background"]["n"] == 33
    page = (out / "report.html").read_text().replace("\u00a0", " ")
    assert "trained on 100 images of each kind" in page
    assert f"{100 * figures['leaks']['original_attribute']['background']['accuracy']:.1f} %" in page
    assert "counterfactual or reconstruction" in page
    assert "codec loss" in page
    before = shard_bytes(out)
    assert call(capsys, "train", tmp_path / "tiny.yaml", "--out", out).code == 0
    assert shard_bytes(out) == before


def test_a_directory_is_bound_to_its_images(
    birds: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same recipe on a folder of the same name with one other pixel must not reuse a model or a shard."""
    moved = tmp_path / birds.name
    shutil.copytree(birds, moved)
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    same = folder_recipe(tmp_path / "same.yaml", moved)
    assert call(capsys, "diagnose", same, "--out", out).code == 0  # elsewhere, but the same images
    recolour(moved / "bird-00.png")
    before = contents(out)
    answer = call(capsys, "diagnose", same, "--out", out)
    assert answer.code == 2
    assert "other images" in answer.complaint
    assert contents(out) == before


def test_more_seeds_only_add_rows(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    kept = (out / "results.jsonl").read_text().splitlines()
    shards = shard_bytes(out)
    assert call(capsys, "train", recipe, "--out", out, "--train.seeds=[0, 1]").code == 0
    rows = (out / "results.jsonl").read_text().splitlines()
    assert rows[: len(kept)] == kept
    assert [json.loads(row)["seed"] for row in rows[len(kept) :]] == [1, 1]
    assert load_recipe(out / "config.yaml").train.seeds == [0, 1]
    assert shard_bytes(out) == shards


def test_products_without_their_run_json_are_nobodys(finished: Path, recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "run.json").unlink()
    answer = call(capsys, "train", recipe, "--out", out)
    assert answer.code == 2
    assert "run.json" in answer.complaint


def test_what_is_judged_is_what_was_generated(finished: Path) -> None:
    """The counterfactuals of the evaluation are the shards' own images, and identity cannot pass for effect."""
    figures = json.loads((finished / "evaluation" / "figures.json").read_text())
    reader = ShardReader(finished)
    generated = {reader.image(i).tobytes() for i in range(len(reader)) if not reader.index[i].null}
    with np.load(finished / "evaluation" / "images.npz") as arrays:
        assert {image.tobytes() for image in arrays["counterfactual"]} <= generated
    assert figures["attributes"]["background"]["n"] < figures["images"]  # some interventions change nothing
    assert figures["attributes"]["species"]["n"] == figures["images"]
