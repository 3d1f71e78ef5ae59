"""Fitting as a stage: going on after an interruption, stopping by a score, several processes, models of another run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, contents, folder_recipe

from cfaug.config import load_recipe
from cfaug.data import Schema
from cfaug.decode import CounterfactualModel
from cfaug.decode.diffusion import flow_loss as loss_module
from cfaug.errors import ShardError, UsageError
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.fitting import refuse_other_model


def test_an_interrupted_fit_goes_on_where_it_was(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, decoder={"checkpoint_seconds": 0})
    assert call(capsys, "fit", recipe, "--out", tmp_path / "whole").code == 0
    real, calls = loss_module.flow_loss, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "flow_loss", interrupted)
        assert call(capsys, "fit", recipe, "--out", tmp_path / "killed").code == 130
    assert contents(tmp_path / "killed" / "fit.partial")
    assert not (tmp_path / "killed" / "model").exists()
    assert call(capsys, "fit", recipe, "--out", tmp_path / "killed").code == 0
    assert not (tmp_path / "killed" / "fit.partial").exists()
    models = [CounterfactualModel.load(tmp_path / name / "model") for name in ("whole", "killed")]
    assert models[0].digest == models[1].digest


def test_overwrite_forgets_what_was_begun(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds, decoder={"checkpoint_seconds": 0}), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(CounterfactualModel, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(capsys, "fit", recipe, "--out", out).code == 130
    assert contents(out / "fit.partial")
    assert call(capsys, "diagnose", recipe, "--out", out, "--overwrite").code == 0
    assert not (out / "fit.partial").exists()


def test_training_is_stopped_by_the_score(birds: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = folder_recipe(tmp_path / "r.yaml", birds, decoder={"validate_every": 1, "patience": 1, "max_steps": 40})
    assert call(capsys, "fit", recipe, "--out", tmp_path / "out").code == 0
    found = json.loads((tmp_path / "out" / "model" / "decoder.json").read_text())["training"]
    assert found["stopped"] == "early"
    assert found["steps"] == len(found["scores"]) < 40
    assert all(0 <= row["score"] <= 1 for row in found["scores"])


@pytest.mark.slow  # tests/decode trains with two processes in the default suite
def test_two_processes_fit_one_model(birds: Path, tmp_path: Path) -> None:
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds, decoder={"validate_every": 2}), tmp_path / "out"
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cfaug"]
    words = [*together, "fit", str(recipe), "--out", str(out), "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model ") == 1
    assert done.stderr.count("fit done") == 1
    assert CounterfactualModel.load(out / "model").digest
    assert sorted(path.name for path in out.iterdir()) == [
        "ASSUMPTIONS.md", "assumptions.json", "config.yaml", "model", "run.json", "run.lock",
    ]  # fmt: skip


def test_only_fit_is_for_several_processes(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    recipe = folder_recipe(tmp_path / "r.yaml", birds)
    complaint = call(capsys, "run", recipe, "--out", tmp_path / "out").complaint
    assert "`cfaug run` is one process, but torchrun started several; start `cfaug fit`" in complaint
    assert not (tmp_path / "out").exists()


def test_a_fit_that_diverges_says_a_command_that_works(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds), tmp_path / "out"
    real, calls = loss_module.flow_loss, iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "flow_loss", lambda *a: real(*a) * (float("nan") if next(calls) == 4 else 1))
        answer = call(capsys, "fit", recipe, "--out", out)
    assert answer.code == 1
    assert "diverged at step 4" in answer.complaint
    assert f"of step 3, are kept in {out / 'fit.partial' / 'diffusion'})" in answer.complaint
    assert contents(out / "fit.partial" / "diffusion")
    said = re.search(r"`cfaug fit RECIPE.yaml --out DIR (.*?)`", answer.complaint)
    assert said
    assert call(capsys, "fit", recipe, "--out", out, *said[1].split()).code == 0
    assert not (out / "fit.partial").exists()


WRONG = {
    "depth": (["--decoder.depth.remark=0.5"], "decoder.depth: expected parents of the image in the graph (species, background, glow), got 'remark'"),
    "autoencoder": (["--decoder.space=latents", "--decoder.autoencoder=nowhere"], "in nowhere, but it has no config.json"),
    "score": (
        ["--decoder.validate_every=2", "--graph=species; background -> glow; glow -> image"],
        "needs a categorical attribute",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_an_impossible_decoder_is_refused_before_any_writing(
    case: str, birds: Path, tmp_path: Path, capsys: Any
) -> None:
    words, expected = WRONG[case]
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds), tmp_path / "out"
    answer = call(capsys, "fit", recipe, "--out", out, *words)
    assert answer.code == 2
    assert expected in answer.complaint
    assert not out.exists()
    assert call(capsys, "plan", recipe, "--out", out).code == 0


def test_a_fitted_run_does_not_need_its_autoencoder_any_more(birds: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        folder_recipe(tmp_path / "r.yaml", birds, decoder={"space": "latents", "autoencoder": str(tmp_path / "gone")})
    )
    with pytest.raises(UsageError, match=r"has no config.json"):
        open_inputs(recipe, progress=False)
    assert len(open_inputs(recipe, progress=False, fitted=True).train) == 36


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "graph": (
        {"graph": "species <-> background; species -> image; background -> image; background -> glow; glow -> image"},
        "expected the graph background <-> species; background -> glow;",
    ),
    "kinds": ({"attributes": {"kinds": {"glow": "ordinal"}}}, "expected glow: ordinal ("),
    "target": ({"attributes": {"target": "background", "spurious": ["species"]}}, "expected the target background"),
}


@pytest.mark.parametrize("case", list(OTHERS))
def test_a_model_of_another_run_is_refused(case: str, birds: Path, finished: Path, tmp_path: Path, capsys: Any) -> None:
    changes, expected = OTHERS[case]
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds, **changes), tmp_path / "out"
    assert call(capsys, "plan", recipe, "--out", out).code == 0
    shutil.copytree(finished / "model", out / "model")
    for command in ("generate", "evaluate", "fit"):
        answer = call(capsys, command, recipe, "--out", out)
        assert answer.code == 1
        assert f"{out / 'model'} holds a model of a different run: {expected}" in answer.complaint
        assert "--overwrite" in answer.complaint
    assert not (out / "shards").exists()


def test_other_statistics_are_a_different_run_a_digit_is_not(birds: Path, tmp_path: Path) -> None:
    inputs = open_inputs(load_recipe(folder_recipe(tmp_path / "r.yaml", birds)), progress=False)

    def model(factor: float) -> Schema:
        scale = inputs.schema["glow"].scale[0] * factor
        return Schema(
            [dataclasses.replace(a, mean=scale) if a.name == "glow" else a for a in inputs.schema],
            inputs.schema.target,
            inputs.schema.spurious,
        )

    refuse_other_model(inputs, inputs.graph, model(1 + 1e-13), tmp_path)
    with pytest.raises(ShardError, match="expected glow: mean"):
        refuse_other_model(inputs, inputs.graph, model(1.01), tmp_path)


def test_two_processes_train_one_table(birds: Path, tmp_path: Path) -> None:
    """Each sees its part of every batch; the rows are written once, and a single process goes on from them."""
    recipe, out = (
        folder_recipe(tmp_path / "r.yaml", birds, train={"methods": ["erm", "group_dro"], "epochs": 2}),
        tmp_path / "out",
    )
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "cfaug"]
    words = [*together, "train", str(recipe), "--out", str(out), "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["erm", "group_dro"]
    assert done.stdout.count("erm") == 1


def test_two_processes_do_not_generate_on_their_own(birds: Path, tmp_path: Path) -> None:
    recipe, out = folder_recipe(tmp_path / "r.yaml", birds), tmp_path / "out"
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "cfaug"]
    done = subprocess.run(
        [*together, "train", str(recipe), "--out", str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "run `cfaug generate` first" in done.stderr
