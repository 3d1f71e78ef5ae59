"""``cfaug export`` and ``cfaug import`` by the command line: a round trip with a script that edits, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call, contents, shard_bytes
from PIL import Image

from cfaug.cli import main
from cfaug.data.images import pixel_digest
from cfaug.offline import ShardReader
from cfaug.offline.marks import mark_of

CONTENT: dict[str, Any] = {
    "name": "scenes",
    "attributes": {"target": "shape", "spurious": ["ground"]},
    "graph": "shape <-> ground; shape -> image; ground -> image",
    "decoder": {"kind": "imported"},
    "plan": {"per_image": 1, "null_fraction": 0.5},
    "generate": {"workers": 0, "samples_per_shard": 50, "batch_size": 16},
    "train": {"methods": ["erm", "cfaug"], "seeds": [0], "epochs": 1},
    "evaluate": {"images": 16, "cycles": 2},
}
SIDE = 24
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("exported") / "data", train=60)


def recipe_of(path: Path, scenes: Path, **changes: Any) -> Path:
    data = {"source": "folder", "root": str(scenes), "masks": "mask"}
    path.write_text(yaml.safe_dump({**CONTENT, "data": data, **changes}))
    return path


@pytest.fixture(scope="module")
def edited(scenes: Path) -> Path:
    """A run with a plan, whose wanted edits a script has made; not to be changed."""
    run = scenes.parent / "out"
    recipe_of(scenes.parent / "r.yaml", scenes)
    assert main(["plan", str(scenes.parent / "r.yaml"), "--out", str(run), "--no-progress"]) == 0
    assert main(["export", str(run), "--no-progress"]) == 0
    edit(run / "edits")
    return run


@pytest.fixture
def copy(edited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(edited, tmp_path / "run"))


def edit(place: Path) -> None:
    """What a tool of the user's own does: the ground gets other colours, row by row; the object stays."""
    for k, row in enumerate(table_of(place)):
        image, mask = (np.array(Image.open(place / row[name])) for name in ("source", "mask"))
        other = np.roll(image, 1, axis=2) // 2 + np.uint8(k)  # no two edits are the same
        Image.fromarray(np.where(mask[..., None] > 127, image, other)).save(place / row["file_name"])


def table_of(place: Path) -> Rows:
    return [json.loads(line) for line in (place / "edits.jsonl").read_text().splitlines()]


def write_table(place: Path, rows: Rows) -> None:
    (place / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def import_(capsys: Any, run: Path, *more: str, edits: Path | None = None) -> Any:
    return call(capsys, "import", run, edits or run / "edits", "--no-progress", *more)


def test_what_is_exported(edited: Path, scenes: Path) -> None:
    rows, place = table_of(edited / "edits"), edited / "edits"
    planned = [json.loads(line) for path in (edited / "plan").glob("*.jsonl") for line in path.read_text().splitlines()]
    wanted = {row["key"]: row for row in planned if row["do"]}
    assert [row["key"] for row in rows] == list(wanted)
    assert len(list((place / "sources").iterdir())) == len({row["source_key"] for row in rows}) == 60
    for row in rows:
        assert {name: row[name] for name in ("source_key", "do", "seed")} == {
            name: wanted[row["key"]][name] for name in ("source_key", "do", "seed")
        }
        source = np.array(Image.open(scenes / row["source_key"]))
        assert np.array_equal(np.array(Image.open(place / row["source"])), source)
        assert pixel_digest(source) == row["source_digest"]
        masked = scenes / row["source_key"].replace("images", "masks")
        assert np.array_equal(np.array(Image.open(place / row["mask"])), np.array(Image.open(masked)))
        assert row["attributes"]["ground"] == row["do"]["ground"]
        assert (row["prompt"], row["file_name"]) == ("", f"{row['key']}.png")


def test_round_trip_to_a_report(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = import_(capsys, copy)
    assert done.code == 0, done.err
    assert done.out.startswith("60 edited images imported, 0 rows of the plan left out\n3 shards")
    rows, reader = {row["key"]: row for row in table_of(copy / "edits")}, ShardReader(copy / "shards")
    assert len(reader) == 120
    for i in range(len(reader)):
        record = reader.record(i)
        assert record["mechanism"] == "imported"
        if record["do"]:
            row = rows[record["key"]]
            assert np.array_equal(reader.image(i), np.array(Image.open(copy / "edits" / row["file_name"])))
            assert (record["attributes"], record["source_digest"]) == (row["attributes"], row["source_digest"])
        else:
            assert pixel_digest(reader.image(i)) == record["source_digest"]
    assert call(capsys, "verify", copy, "--regenerate", "40", "--no-progress").out.count("ok: ") == 2
    said = (copy / "shards" / "README.md").read_text()
    assert "The counterfactuals are imported" in said
    assert "{name: mechanism, dtype: string}" in said
    before = shard_bytes(copy)
    for command in ("train", "evaluate", "report"):
        assert call(capsys, command, copy).code == 0
    figures = json.loads((copy / "evaluation" / "figures.json").read_text())
    assert figures["composition_l1"] == 0
    assert figures["reversibility_l1"] is None
    assert 0 <= figures["leaks"]["original_attribute"]["ground"]["accuracy"] <= 1
    page = (copy / "report.html").read_text()
    assert "counterfactuals (imported)" in page
    assert "edited elsewhere" in page
    assert shard_bytes(copy) == before
    again = import_(capsys, copy)
    assert "all there before" in again.out
    assert shard_bytes(copy) == before


def test_the_table_needs_keys_and_names_alone(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV or JSON lines, two workers or none, the run here or there: the same bytes."""
    import_(capsys, copy)
    for k, columns in enumerate((["file_name", "key"], None)):
        run = Path(
            shutil.copytree(copy, tmp_path / f"other-{k}", ignore=shutil.ignore_patterns("model", "shards", "edits"))
        )
        place = tmp_path / f"elsewhere-{k}"
        assert call(capsys, "export", run, "--edits", place / "wanted.csv", "--no-progress").code == 0
        with (place / "wanted.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert json.loads(rows[0]["do"]) == table_of(copy / "edits")[0]["do"]
        with (place / "edits.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, columns or list(rows[0]), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(reversed(rows))
        for row in rows:
            shutil.copy(copy / "edits" / row["file_name"], place)
        done = import_(capsys, run, "--generate.workers=2", edits=place)
        assert done.code == 0, done.err
        assert shard_bytes(run) == shard_bytes(copy)


def test_rows_without_an_edit_are_left_out_and_said(
    copy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = table_of(copy / "edits")
    write_table(copy / "edits", rows[3:])
    done = import_(capsys, copy)
    assert done.code == 0, done.err
    assert f"3 rows of the plan have no edited image and are left out (first: {rows[0]['key']})" in caplog.messages
    assert "57 edited images imported, 3 rows of the plan left out" in done.out
    keys = set(ShardReader(copy / "shards").keys)
    assert len(keys) == 117
    assert not keys & {row["key"] for row in rows[:3]}
    assert call(capsys, "verify", copy, "--regenerate", "117", "--no-progress").out.count("ok: ") == 2
    assert call(capsys, "evaluate", copy).code == 0


def test_a_gate_judges_them_and_draws_nothing_again(
    scenes: Path, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = {"enabled": True, "least": 2, "criteria": ["shown"], "false_rejections": 0.5}
    recipe = recipe_of(tmp_path / "r.yaml", scenes, gate=gate)
    run = tmp_path / "run"
    assert call(capsys, "plan", recipe, "--out", run).code == 0
    shutil.copytree(edited / "edits", run / "edits")
    write_table(run / "edits", table_of(run / "edits")[1:])
    done = import_(capsys, run)
    assert done.code == 0, done.err
    reader = ShardReader(run / "shards")
    records = [reader.record(i) for i in range(len(reader))]
    assert 60 < len(records) < 119
    assert {record["quality"]["attempt"] for record in records} == {0}
    planned = {row["key"]: row["source_key"] for row in table_of(edited / "edits")}
    assert all(record["source_key"] == planned[record["key"]] for record in records if record["do"])
    assert call(capsys, "evaluate", run).code == 0
    assert json.loads((run / "evaluation" / "figures.json").read_text())["gate"]["acceptance"]["asked"] == 59


def test_other_sizes_are_brought_to_the_working_size_and_said(
    copy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows, place = table_of(copy / "edits"), copy / "edits"
    made = {}
    for k, (row, size) in enumerate(zip(rows, [(96, 96), (12, 12), (60, 30)])):
        large = np.random.default_rng(k).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(large).save(place / row["file_name"])
        made[row["key"]] = cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC if k == 1 else cv2.INTER_AREA)
    Image.fromarray(np.full((SIDE, SIDE), 90, np.uint8)).save(place / rows[3]["file_name"])  # grey
    made[rows[3]["key"]] = np.full((SIDE, SIDE, 3), 90, np.uint8)
    done = import_(capsys, copy)
    assert done.code == 0, done.err
    first = rows[0]["file_name"]
    assert f"3 edited images are resized to 24x24, 1 of them stretched (first: {first}, 96x96)" in caplog.messages
    assert "60 edited images imported (3 resized)" in done.out
    reader = ShardReader(copy / "shards")
    for key, image in made.items():
        assert np.array_equal(reader.image(reader.keys.index(key)), image)


@pytest.mark.parametrize("image", ["png", "webp"])
def test_every_file_says_how_it_was_made(
    scenes: Path, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str
) -> None:
    recipe = recipe_of(tmp_path / "r.yaml", scenes, generate={**CONTENT["generate"], "image": image})
    run = tmp_path / "run"
    assert call(capsys, "plan", recipe, "--out", run).code == 0
    shutil.copytree(edited / "edits", run / "edits")
    for told, expected in ((None, "trainedAlgorithmicMedia"), ("humanEdits", "humanEdits")):
        rows = table_of(run / "edits")
        if told:
            uri = f"http://cv.iptc.org/newscodes/digitalsourcetype/{told}"
            write_table(run / "edits", [{**row, "digital_source_type": uri} for row in rows])
        assert import_(capsys, run, "--overwrite").code == 0
        assert call(capsys, "verify", run).out.startswith("ok: ")
        reader = ShardReader(run / "shards")
        for i in (0, len(reader) - 1):
            entry = reader.index[i]
            tar = (run / "shards" / ("cf-train-000000.tar" if i == 0 else "cf-train-000002.tar")).read_bytes()
            data = tar[entry.image.offset : entry.image.offset + entry.image.size]
            assert mark_of(data, image) == expected
        assert f"digital source type `{expected}`" in (run / "shards" / "README.md").read_text()


def test_a_working_size_is_exported_and_the_digest_is_of_the_stored_image(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"source": "folder", "root": str(scenes), "masks": "mask", "size": 16}
    recipe = recipe_of(tmp_path / "r.yaml", scenes, data=data)
    assert call(capsys, "plan", recipe, "--out", tmp_path / "run").code == 0
    assert call(capsys, "export", tmp_path / "run", "--no-progress").code == 0
    place = tmp_path / "run" / "edits"
    row = table_of(place)[0]
    assert Image.open(place / row["source"]).size == Image.open(place / row["mask"]).size == (16, 16)
    assert row["source_digest"] == pixel_digest(np.array(Image.open(scenes / row["source_key"])))
    edit(place)
    assert import_(capsys, tmp_path / "run").code == 0


def test_a_run_that_generates_itself_is_exported_by_its_scm_and_can_be_replaced(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(
        tmp_path / "r.yaml",
        scenes,
        graph="shape <-> ground; ground -> colour; shape -> image; ground -> image; colour -> image",
        decoder={"kind": "layered", "layers": {"background": ["ground"], "foreground": ["colour"]}},
        gate={"enabled": False},
    )
    run = tmp_path / "run"
    assert call(capsys, "generate", recipe, "--out", run).code == 0
    reader = ShardReader(run / "shards")
    records = {record["key"]: record for record in (reader.record(i) for i in range(len(reader)))}
    assert call(capsys, "export", run, "--no-progress").code == 0
    rows = table_of(run / "edits")
    assert any(row["attributes"]["colour"] != records[row["key"]]["factual"]["colour"] for row in rows)
    assert all(row["attributes"] == records[row["key"]]["attributes"] for row in rows)
    edit(run / "edits")
    before = contents(run)
    refused = import_(capsys, run)
    assert "holds the model of other images" in refused.complaint
    assert contents(run) == before
    done = import_(capsys, run, "--overwrite")
    assert done.code == 0, done.err
    assert yaml.safe_load((run / "config.yaml").read_text())["decoder"]["kind"] == "imported"
    reader = ShardReader(run / "shards")
    assert all(reader.record(i)["attributes"] == records[reader.keys[i]]["attributes"] for i in range(len(reader)))
    assert (run / "edits" / rows[0]["file_name"]).exists()
    assert call(capsys, "train", run).code == 0
    assert call(capsys, "train", recipe, "--out", run).complaint.startswith(f"cfaug: {run} holds a run of a different")


def test_an_image_that_changes_later_is_not_taken_for_the_imported_one(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_(capsys, copy).code == 0
    name = table_of(copy / "edits")[0]["file_name"]
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(copy / "edits" / name)
    assert (
        "expected the file that was imported"
        in call(capsys, "verify", copy, "--regenerate", "120", "--no-progress").complaint
    )
    assert "holds the model of other images" in import_(capsys, copy).complaint
    planned = (copy / "plan" / "plan.json").stat().st_mtime_ns
    assert import_(capsys, copy, "--overwrite").code == 0
    assert (copy / "plan" / "plan.json").stat().st_mtime_ns == planned  # the plan that was edited, not one drawn anew
    assert call(capsys, "verify", copy, "--regenerate", "120", "--no-progress").out.count("ok: ") == 2


# -- refusals --------------------------------------------------------------------------------------------------------------


def rewritten(change: Callable[[Rows, Path], Rows | None]) -> Callable[[Path, Path], None]:
    def act(place: Path, scenes: Path) -> None:
        rows = table_of(place)
        write_table(place, change(rows, scenes) or rows)

    return act


def held_out(rows: Rows, scenes: Path) -> None:
    rows[4]["source_digest"] = pixel_digest(np.array(Image.open(scenes / "images" / "test003.png")))
    rows[5]["source_key"] = "images/val001.png"


REFUSED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a missing image": (
        lambda place, _: [(place / row["file_name"]).unlink() for row in table_of(place)[2:4]] and None,
        "expected an image for each row, got 2 missing (first: train-",
    ),
    "a key that is not planned": (
        rewritten(lambda rows, _: rows[1].update(key="train-999999999")),
        "expected keys of the plan, got 1 others (first: train-999999999)",
    ),
    "a key twice": (rewritten(lambda rows, _: [*rows, rows[7], rows[7]]), "expected each key once, got 2 twice (first: train-"),
    "a null intervention": (
        rewritten(lambda rows, _: rows[0].update(key=first_null(rows))),
        "expected keys of interventions, got 1 of null interventions",
    ),
    "swapped sources": (
        rewritten(lambda rows, _: rows[0].update(source_digest=rows[1]["source_digest"])),
        "expected the sources of the plan, got 1 rows of other sources (first: train-",
    ),
    "swapped keys of sources": (
        rewritten(lambda rows, _: rows[0].update(source_key=rows[1]["source_key"])),
        "expected the sources of the plan, got 1 rows of other sources (first: train-",
    ),
    "held-out sources": (rewritten(held_out), "expected sources of the train split, got 2 held-out ones (first: train-"),
    "another do": (rewritten(lambda rows, _: rows[0].update(do={"ground": "sand"})), "got 1 rows of a different plan"),
    "another seed": (rewritten(lambda rows, _: rows[0].update(seed=1)), "expected the do and seed of the plan, got 1 rows"),
    "no image": (
        lambda place, _: (place / table_of(place)[0]["file_name"]).write_bytes(b"GIF89a") and None,
        "expected images in PNG, JPEG or WebP, got 1 that cannot be decoded (first: train-",
    ),
    "no table": (lambda place, _: (place / "edits.jsonl").unlink(), "with one table, edits.jsonl or edits.csv, got neither"),
    "two tables": (lambda place, _: (place / "edits.csv").write_text("key,file_name\n") and None, "got both"),
    "no folder": (lambda place, _: shutil.rmtree(place), "got no such folder"),
    "no rows": (lambda place, _: (place / "edits.jsonl").write_text("\n") and None, "expected rows, got none"),
    "no JSON": (lambda place, _: (place / "edits.jsonl").write_text("{\n") and None, "expected rows of jsonl, got "),
    "no name": (
        rewritten(lambda rows, _: [{"key": row["key"]} for row in rows]),
        "expected rows with key and file_name, got 60 without (first: row 1)",
    ),
    "a way out": (
        rewritten(lambda rows, _: rows[0].update(file_name="../config.yaml")),
        "got 1 that lead out of it (first: ../config.yaml)",
    ),
    "an unknown source type": (
        rewritten(lambda rows, _: rows[0].update(digital_source_type="a photograph")),
        "expected terms of IPTC's vocabulary, got 'a photograph'",
    ),
}  # fmt: skip


def first_null(rows: Rows) -> str:
    keys = {row["key"] for row in rows}
    return next(key for key in (f"train-{i:09d}" for i in range(120)) if key not in keys)


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_before_anything_is_written(
    copy: Path, scenes: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    spoil, fragment = REFUSED[what]
    spoil(copy / "edits", scenes)
    before = contents(copy)
    assert fragment in import_(capsys, copy).complaint
    assert contents(copy) == before


def test_a_shard_without_any_image_is_refused(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"per_image": 1, "null_fraction": 0}
    train = {**CONTENT["train"], "null_p": 0}
    recipe = recipe_of(tmp_path / "r.yaml", scenes, plan=plan, train=train)
    run = tmp_path / "run"
    assert call(capsys, "plan", recipe, "--out", run).code == 0
    assert call(capsys, "export", run, "--no-progress").code == 0
    edit(run / "edits")
    rows = table_of(run / "edits")
    write_table(run / "edits", rows[:30])
    refused = import_(capsys, run).complaint
    assert "cf-train-000001.tar: expected an edited image for at least one row of each shard, got none" in refused
    assert rows[30]["key"] in refused


def test_other_refusals(copy: Path, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = edited.parent / "r.yaml"
    for command in ("run", "fit", "generate", "train"):
        said = call(capsys, command, recipe, "--out", copy)
        assert said.code == 2
        assert "cfaug import" in said.err.splitlines()[-1]
    assert "ends in .jsonl or .csv" in call(capsys, "export", copy, "--edits", tmp_path / "edits.xlsx").complaint
    for command in (("export", tmp_path), ("import", tmp_path, copy / "edits")):
        assert "expected a run with its configuration" in call(capsys, *command).complaint
    (copy / "plan" / "plan.json").unlink()
    assert "that cfaug plan wrote to" in call(capsys, "export", copy).complaint
    other = import_(capsys, edited, "--seed=3")
    assert "holds a run of a different configuration (seed was 0, now 3)" in other.complaint


def test_an_export_says_the_edit_in_words(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"template": "a {shape} on {ground}", "words": {"ground": {"dots": "small dots"}}}
    path, out = recipe_of(tmp_path / "r.yaml", scenes, decoder={"kind": "imported", "editor": words}), tmp_path / "run"
    assert call(capsys, "plan", path, "--out", out, "--no-progress").code == 0
    assert call(capsys, "export", out, "--no-progress").code == 0
    for row in table_of(out / "edits"):
        assert row["prompt"] == f"a {row['attributes']['shape']} on {row['do']['ground'].replace('dots', 'small dots')}"
