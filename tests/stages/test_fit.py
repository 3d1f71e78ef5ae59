"""Fitting as a stage: a distilled decoder with its teacher, going on after a kill, stopping by a score, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call, contents, folder_recipe

from cfaug.cli import main
from cfaug.decode import CounterfactualModel, DiffusionDecoder, DistilledDecoder, pairs, student, training

DISTILLED = {"kind": "distilled", "distil_pairs": 1, "distil_share": 0.6}


def distilled(directory: Path, birds: Path, **decoder: Any) -> Path:
    return folder_recipe(directory / "recipe.yaml", birds, decoder={**DISTILLED, **decoder})


def test_a_distilled_run_keeps_its_teacher(birds: Path, tmp_path: Path) -> None:
    recipe, out = distilled(tmp_path, birds), tmp_path / "out"
    assert main(["run", str(recipe), "--out", str(out), "--no-progress"]) == 0
    model = CounterfactualModel.load(out / "model")
    teacher = DiffusionDecoder.load(out / "model" / "teacher")
    assert isinstance(model.decoder, DistilledDecoder)
    assert model.decoder.teacher == teacher.digest
    assert teacher.report is not None
    assert model.decoder.report is not None
    assert (teacher.report.steps, model.decoder.report.steps) == (5, 3)
    assert not (out / "fit.partial").exists()
    figures = json.loads((out / "evaluation" / "figures.json").read_text())
    assert figures["composition_l1"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("where", ["teacher", "pairs", "student"])
def test_an_interrupted_fit_goes_on_where_it_was(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, where: str
) -> None:
    recipe = distilled(tmp_path, birds, checkpoint_seconds=0)
    assert call(capsys, "fit", recipe, "--out", tmp_path / "whole").code == 0
    place, name = {
        "teacher": (training.disk, "write"),
        "pairs": (pairs, "_keep"),
        "student": (student, "uniform"),
    }[where]
    real, calls = getattr(place, name), []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 or where == "pairs":
            real(*args)
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        assert call(capsys, "fit", recipe, "--out", tmp_path / "killed").code == 130
    assert (tmp_path / "killed" / "fit.partial").is_dir()
    assert (tmp_path / "killed" / "model" / "teacher").exists() == (where != "teacher")
    assert call(capsys, "fit", recipe, "--out", tmp_path / "killed").code == 0
    assert not (tmp_path / "killed" / "fit.partial").exists()
    models = [CounterfactualModel.load(tmp_path / name / "model") for name in ("whole", "killed")]
    assert models[0].digest == models[1].digest
    reports = [
        json.loads((tmp_path / "killed" / "model" / part / "decoder.json").read_text())["training"]["resumed"]
        for part in ("teacher", ".")
    ]
    assert reports == {"teacher": [1, 0], "pairs": [0, 0], "student": [0, 1]}[where]


def test_overwrite_forgets_what_was_begun(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds, decoder={"checkpoint_seconds": 0}), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(CounterfactualModel, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(capsys, "fit", recipe, "--out", out).code == 130
    assert contents(out / "fit.partial")
    assert call(capsys, "plan", recipe, "--out", out, "--overwrite").code == 0
    assert not (out / "fit.partial").exists()


def test_training_is_stopped_by_the_score(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, decoder={"validate_every": 1, "patience": 1, "max_steps": 40})
    assert call(capsys, "fit", recipe, "--out", tmp_path / "out").code == 0
    found = json.loads((tmp_path / "out" / "model" / "decoder.json").read_text())["training"]
    assert found["stopped"] == "early"
    assert found["steps"] == len(found["scores"]) < 40
    assert all(0 <= row["score"] <= 1 for row in found["scores"])


def test_two_processes_fit_one_model(birds: Path, tmp_path: Path) -> None:
    recipe, out = distilled(tmp_path, birds, validate_every=2), tmp_path / "out"
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cfaug"]
    words = [*together, "fit", str(recipe), "--out", str(out), "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model ") == 1
    assert done.stderr.count("fit done") == 1
    assert isinstance(CounterfactualModel.load(out / "model").decoder, DistilledDecoder)
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "model", "run.json"]


def test_only_fit_is_for_several_processes(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    recipe = folder_recipe(tmp_path / "r.yaml", birds)
    complaint = call(capsys, "run", recipe, "--out", tmp_path / "out").complaint
    assert "`cfaug run` is one process, but torchrun started several; start `cfaug fit` with it" in complaint
    assert not (tmp_path / "out").exists()
