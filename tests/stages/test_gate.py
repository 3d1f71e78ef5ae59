"""The gate of a run: readers and thresholds from its real images, kept and made again, refusals, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.layered import write_folder
from helpers.text_model import save_text_model
from helpers.tiny_run import call, merged
from helpers.wrong_models import Recording, WrongModel

from cfaug.cli import main
from cfaug.config import load_recipe
from cfaug.decode import CounterfactualModel
from cfaug.decode.text_image import TextImageModel
from cfaug.offline import Plan, ShardReader
from cfaug.offline.commit import open_destination
from cfaug.offline.gate import Candidates
from cfaug.offline.make_shard import ShardWork
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.gate import make_gate
from cfaug.stages.gate_readers import folds_of
from cfaug.stages.masks import with_masks
from cfaug.stages.verification import regenerate_run


def recipe(path: Path, root: Path, **changes: Any) -> Path:
    content = {
        "name": "gated",
        "data": {"source": "folder", "root": str(root), "masks": "mask"},
        "attributes": {"target": "shape", "spurious": ["ground"], "kinds": {"colour": "categorical"}},
        "graph": "shape <-> ground; colour; shape -> image; ground -> image; colour -> image",
        "decoder": {
            "kind": "layered",
            "layers": {"background": ["ground"], "foreground": ["colour"]},
            "composite": {"fill": "texture", "margin": 0},
        },
        "plan": {"per_image": 1, "null_fraction": 0},
        "generate": {"workers": 0, "samples_per_shard": 100, "batch_size": 25},
        "gate": {"care": ["colour"], "least": 5},
        "train": {"methods": ["counterfactuals_only"], "seeds": [0], "epochs": 8, "null_p": 0, "p": 1.0},
        "evaluate": {"images": 40, "cycles": 1},
    }
    path.write_text(yaml.safe_dump(merged(content, changes), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("scenes") / "data", train=240)


@pytest.fixture(scope="module")
def finished(scenes: Path) -> Path:
    place = scenes.parent
    assert main(["run", str(recipe(place / "recipe.yaml", scenes)), "--out", str(place / "out"), "--no-progress"]) == 0
    return place / "out"


def opened(run: Path) -> tuple[Any, Any, Any]:
    settings = load_recipe(run / "config.yaml")
    return (
        settings,
        with_masks(settings, open_inputs(settings, False, True), run / "masks"),
        CounterfactualModel.load(run / "model"),
    )


def rejected(run: Path, fault: str | None) -> dict[str, Any]:
    """Criterion -> whether it rejects each counterfactual that differs from its source, NaN where it abstains."""
    settings, inputs, model = opened(run)
    gate = Recording(make_gate(settings, inputs, model, run))
    wrong = model if fault is None else WrongModel(model, fault, inputs.sources, "colour")
    work = ShardWork(wrong, inputs.sources, Plan.load(run / "plan"), open_destination(run), 25, {}, gate=gate)
    own = inputs.train.table["ground"]
    rows = [row for row in work.plan if dict(row.do.assignments)["ground"] != own[row.source_key]][:75]
    for start in range(0, 75, 25):
        work.batch(rows[start : start + 25])
    return {name: np.where(np.isnan(one), np.nan, np.array(one) < 0) for name, one in gate.found.items()}


def test_a_right_model_loses_little(finished: Path) -> None:
    found = rejected(finished, None)
    assert set(found) == {
        "object found", "shape kept", "ground shown", "ground kept", "colour shown", "colour kept", "unchanged outside the region",
        "no trace of the old background", "near the data", "no copy",
    }  # fmt: skip
    assert np.nanmean(np.any([one == 1 for one in found.values()], axis=0)) <= 0.15
    assert np.nanmean(found["unchanged outside the region"]) == 0
    reader = ShardReader(finished / "shards")
    assert len(reader) > 0.95 * len(Plan.load(finished / "plan"))


@pytest.mark.parametrize(
    ("fault", "least", "by"),
    [
        ("ignores do", 0.95, "ground shown"),
        ("leaks", 0.5, "ground shown"),  # half a pattern over the other half: not even people are sure
        ("changes the label", 0.95, "unchanged"),  # another object; the reader of 120 images alone finds few
        ("changes a care attribute", 0.95, "colour kept"),
        ("blurs", 0.95, "unchanged"),
        ("copies", 0.95, "no copy"),
        ("paints outside", 0.95, "unchanged"),
    ],
)
def test_every_fault_is_found(finished: Path, fault: str, least: float, by: str) -> None:
    found = rejected(finished, fault)
    assert np.any([one == 1 for one in found.values()], axis=0).mean() >= least
    assert max(np.nanmean(one) for name, one in found.items() if by in name and not np.isnan(one).all()) >= least


def test_the_gate_is_kept_and_gives_the_same_shards(finished: Path, tmp_path: Path) -> None:
    settings, inputs, model = opened(finished)
    kept = make_gate(settings, inputs, model, finished)
    again = make_gate(settings, inputs, model, tmp_path)  # trained anew
    assert kept is not None
    assert again is not None
    assert kept.digest == again.digest
    (finished / "gate" / "gate.safetensors").write_bytes(b"damaged")
    mended = make_gate(settings, inputs, model, finished)
    assert mended is not None
    assert mended.digest == kept.digest
    assert regenerate_run(finished, 30).ok
    environment = ShardReader(finished / "shards").manifest[0].environment
    assert environment["gate"] == kept.digest


def test_no_reader_judges_an_image_of_its_fold() -> None:
    folds = folds_of([f"image {i}" for i in range(1000)], 5)
    assert np.bincount(folds).min() > 150
    assert folds_of(["image 7"], 5)[0] == folds[7]


def test_evaluation_and_report_speak_of_the_gate(finished: Path) -> None:
    figures = json.loads((finished / "evaluation" / "figures.json").read_text())
    accepted, sound = figures["gate"]["acceptance"], figures["gate"]["soundness"]
    assert accepted["asked"] == 240
    assert accepted["kept"] == len(ShardReader(finished / "shards"))
    assert sum(asked for _, asked in accepted["cells"].values()) == 240
    assert sound["faults"]["ignores do"]["found"] > 0.9
    assert sound["false_rejections"] < 0.2
    assert 0.8 < sound["faults"]["paints on the object"]["precision"] <= 1
    sets = figures["sets"]
    assert sets["factual"]["memorised"] <= 0.25  # 1 % of sixteen held-out images is the nearest of them
    assert sets["null"] == sets["factual"], "a null intervention returns the image"
    page = (finished / "report.html").read_text()
    assert "The gate kept" in page
    assert "Faults planted on purpose" in page
    assert "readers, cross-fitted, read" in page
    assert "realism: counterfactuals" in page


def test_nothing_is_judged_where_nothing_can_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "data", rho=1.0)
    answer = call(capsys, "generate", recipe(tmp_path / "r.yaml", root, gate={"care": []}), "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    said = json.loads((tmp_path / "out" / "gate" / "gate.json").read_text())
    assert "shape" not in said["thresholds"]
    assert any("shape: nothing is judged of disc, square" in line for line in said["silent"])


def test_a_gate_can_be_left_out(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(
        capsys, "generate", recipe(tmp_path / "r.yaml", scenes, gate={"enabled": False}), "--out", tmp_path / "out"
    )
    assert answer.code == 0, answer.err
    assert not (tmp_path / "out" / "gate").exists()


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"care": ["age"]}, "gate.care: expected attributes of the data, got 'age'"),
        ({"care": ["ground"]}, "gate.care: expected attributes that must not change, but 'ground' is intervened on"),
        ({"regions": {"background": ["colour"]}}, "gate.regions: expected attributes that are intervened on, got 'colour'"),
        ({"false_rejections": 0.9}, "gate.false_rejections"),
        ({"criteria": ["pretty"]}, "gate.criteria"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: dict[str, Any], said: str
) -> None:
    answer = call(capsys, "doctor", recipe(tmp_path / "r.yaml", scenes, gate=gate))
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_a_descendant_and_a_number_cannot_be_cared_for(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = recipe(
        tmp_path / "r.yaml", scenes, graph="shape <-> ground; ground -> colour; shape -> image; ground -> image; colour -> image"
    )  # fmt: skip
    assert "'colour' is a descendant of ground, which is intervened on" in call(capsys, "doctor", below).err


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("clip"))


def test_a_local_model_compares_images_with_texts(
    scenes: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = {"clip": str(clip), "texts": {"ground": {"lines": "rows"}}, "criteria": ["text"]}
    answer = call(capsys, "generate", recipe(tmp_path / "r.yaml", scenes, gate=gate), "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    said = json.loads((tmp_path / "out" / "gate" / "gate.json").read_text())
    assert set(said["texts"]["ground"]) == {"lines", "dots"}
    settings, inputs, model = opened(tmp_path / "out")
    made = make_gate(settings, inputs, model, tmp_path / "out")
    assert made is not None
    assert [one.name for one in made.criteria] == ["object found", "ground matches its text"]
    reader: Any = made.criteria[1].read  # type: ignore[attr-defined]
    assert reader.texts == ("a photo of dots", "rows")
    alone = [reader.of_rows(inputs.train, [i])[0] for i in range(3)]
    assert np.allclose(reader.of_rows(inputs.train, range(3)), alone, atol=1e-5)
    assert np.allclose(np.exp(alone).sum(1), 1)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"clip": "nowhere"}, "gate.clip: expected a directory that transformers has saved a CLIP model in"),
        ({"texts": {"grund": {}}}, "gate.texts: expected attributes of the data, got 'grund'; did you mean"),
        (
            {"texts": {"ground": {"line": "x"}}},
            "gate.texts.ground: expected values of ground, got 'line'; did you mean",
        ),
    ],
)
def test_texts_and_models_that_are_not_there(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: dict[str, Any], said: str
) -> None:
    answer = call(capsys, "doctor", recipe(tmp_path / "r.yaml", scenes, gate=gate))
    assert answer.code == 2
    assert said in answer.err


def test_an_image_moves_as_the_texts_of_its_values_do(
    scenes: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path / "r.yaml", scenes, gate={"clip": str(clip), "criteria": ["direction"]})
    assert call(capsys, "generate", path, "--out", tmp_path / "out", "--no-progress").code == 0
    settings, inputs, model = opened(tmp_path / "out")
    made = make_gate(settings, inputs, model, tmp_path / "out")
    assert made is not None
    (criterion,) = [one for one in made.criteria if one.name == "ground moves as its text"]
    assert -1 <= criterion.least < 1  # type: ignore[attr-defined]
    # the first number of an image is where its embedding lies; the text of lines lies at 1, others at 0
    monkeypatch.setattr(
        TextImageModel,
        "embedded",
        lambda self, images, texts: (
            np.array([[float(i[0, 0, 0]), 0.0] for i in images]),
            np.array([[float("lines" in text), 0.0] for text in texts]),
        ),
    )
    at = {value: np.full((2, 2, 3), value, np.uint8) for value in (3, 4, 5)}
    rows = [
        ({"ground": "dots"}, {"ground": "lines"}),
        ({"ground": "lines"}, {"ground": "dots"}),
        ({"ground": "dots"}, {"ground": "dots"}),
        ({"ground": "dots"}, {}),
    ]
    records: Any = [{"factual": old, "do": new} for old, new in rows]
    seen = Candidates([at[5], at[5], at[5], at[4]], records, None)  # type: ignore[arg-type]
    seen._known["pixels"] = np.stack([at[4]] * 4)
    found = criterion.margins(seen) + criterion.least  # type: ignore[attr-defined]
    assert np.array_equal(found, [1, -1, np.nan, np.nan], equal_nan=True)
