"""Pretrained pipelines by the real command line: a whole run, two workers, a kill in between, and what is refused before anything is made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.layered import write_folder
from helpers.text_model import save_text_model
from helpers.tiny_pipelines import save_pipeline
from helpers.tiny_run import call, merged

from cfaug.decode import CounterfactualModel
from cfaug.offline import ShardReader


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    write_folder(root / "data", train=24)
    save_pipeline("StableDiffusionInpaintPipeline", root / "inpaint")
    save_pipeline("StableDiffusionPipeline", root / "plain")
    return root


def recipe(path: Path, place: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "name": "words",
        "data": {"source": "folder", "root": str(place / "data"), "masks": "mask"},
        "attributes": {"target": "shape", "spurious": ["ground", "colour"]},
        "graph": "shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image",
        "decoder": {
            "kind": "pretrained", "layers": {"background": ["ground"], "foreground": ["colour"]},
            "editor": {"pipeline": str(place / "inpaint"), "template": "a {colour} {shape} on {ground}", "steps": 2, "batch": 4},
        },
        "plan": {"per_image": 1, "null_fraction": 0.3},
        "generate": {"workers": 0, "samples_per_shard": 8, "batch_size": 8},
        "gate": {"enabled": False},
        "train": {"methods": ["erm", "cfaug"], "seeds": [0], "epochs": 1, "method_settings": {}},
        "evaluate": {"images": 8, "cycles": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(merged(content, changes)))
    return path


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").glob("*.tar"))}


def test_a_whole_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    answer = call(capsys, "run", recipe(tmp_path / "r.yaml", place), "--out", out, "--no-progress")
    assert answer.code == 0, answer.err
    assert (out / "report.html").exists()
    reader = ShardReader(out / "shards")
    assert {bool(reader.record(i)["do"]) for i in range(len(reader))} == {True, False}
    model = CounterfactualModel.load(out / "model")
    kept = sum(path.stat().st_size for path in (out / "model").iterdir())
    assert kept < 100_000  # a reference and sums, no weights
    assert str(place) not in (out / "model" / "decoder.json").read_text()
    answer = call(capsys, "verify", out, "--regenerate", "5", "--no-progress")
    assert answer.code == 0, answer.out + answer.err
    assert model.digest == reader.record(0)["model"]


def test_workers_and_a_kill_change_no_byte(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = {
        "clip": str(save_text_model(tmp_path)),
        "draws": 2,
        "scale": 0.1,
    }  # another batch must choose no other draw
    path = recipe(tmp_path / "r.yaml", place, decoder={"editor": {"guide": guide}})
    assert call(capsys, "generate", path, "--out", tmp_path / "one", "--no-progress").code == 0
    wanted = bytes_of(tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "cfaug",
        "generate",
        str(path),
        "--out",
        str(tmp_path / "two"),
        "--generate.workers=2",
        "--no-progress",
    ]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "two").glob("shards/*.tar")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(bytes_of(tmp_path / "two")) < len(wanted)
    subprocess.run(command, check=True, capture_output=True)
    assert bytes_of(tmp_path / "two") == wanted


def test_a_gate_of_regions_passes_what_stays_inside(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path / "r.yaml", place, gate={"enabled": None, "criteria": ["unchanged"]})
    answer = call(capsys, "generate", path, "--out", tmp_path / "out", "--no-progress")
    assert answer.code == 0, answer.err
    said = json.loads((tmp_path / "out" / "gate" / "gate.json").read_text())
    assert "outside" in said  # on by itself: an editor is never believed


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"pipeline": "nowhere"}, "decoder.editor.pipeline: expected a directory, got"),
        ({"template": "a {shape}"}, "decoder.editor.template: expected {ground}, which is intervened on"),
        ({"words": {"ground": {"dot": "x"}}}, "decoder.editor.words.ground: expected values of ground, got 'dot'"),
        ({"words": {"ground": {"dots": "very many small dots " * 9}}}, "tokens, got one of"),
        ({"size": None, "pipeline": "klein"}, "expected a directory"),
        ({"strength": 1.5}, "decoder.editor.strength"),
        ({"lora": {"rank": 0}}, "decoder.editor.lora.rank"),
        ({"guide": {"draws": 2}}, "decoder.editor.guide: expected clip, and a scale"),
        (
            {"guide": {"clip": "nowhere", "draws": 2}},
            "decoder.editor.guide.clip: expected a directory that transformers",
        ),
    ],
)
def test_the_doctor_refuses_what_the_run_would(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], error: str
) -> None:
    answer = call(capsys, "doctor", recipe(tmp_path / "r.yaml", place, decoder={"editor": changes}))
    assert answer.code == 2
    assert error in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_adapters_are_trained_killed_resumed_and_used(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"steps": 6, "rank": 2, "batch_size": 2, "learning_rate": 1e-2, "tokens": True, "checkpoint_seconds": 0}
    path = recipe(
        tmp_path / "r.yaml", place, decoder={"layers": {}, "editor": {"pipeline": str(place / "plain"), "lora": lora}}
    )
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # the bytes depend on the number of threads
    subprocess.run(
        [sys.executable, "-m", "cfaug", "fit", str(path), "--out", str(tmp_path / "whole"), "--no-progress"], check=True, capture_output=True, env=alone
    )  # fmt: skip
    command = [sys.executable, "-m", "cfaug", "fit", str(path), "--out", str(tmp_path / "cut"), "--no-progress"]
    process = subprocess.Popen(
        command, start_new_session=True, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "cut" / "fit.partial" / "adapters" / "training.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True, env=alone)
    models = [CounterfactualModel.load(tmp_path / name / "model") for name in ("whole", "cut")]
    assert models[0].digest == models[1].digest
    decoder: Any = models[1].decoder
    assert decoder.report.steps == 6
    assert {"token.<ground-dots>", "token.<colour-red>"} <= set(decoder._lora)
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in decoder._lora.items())
    assert "<ground-dots>" in decoder.pipe.tokenizer.get_vocab()
    answer = call(capsys, "generate", path, "--out", tmp_path / "whole", "--no-progress")
    assert answer.code == 0, answer.err
