"""The loops run, with and without cfaug; what differs between the two is what their diffs and the README say."""

from __future__ import annotations

import configparser
import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.python_files import module
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LOOPS = ROOT / "recipes" / "loops"
NAMES = sorted(path.parent.name for path in LOOPS.glob("*/before.py"))
TWO = "torch.distributed.run --standalone --nproc_per_node 2"
HERE = ("plain_pytorch", "sklearn_features", "torchvision_reference")
EPOCHS = {"plain_pytorch": 8, "torchvision_reference": 4, "hf_trainer": 4, "hf_accelerate": 8}
# an import of transformers takes as long as a training: of the hf_ loops the default suite runs only what has cfaug in it
RUN = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("hf_") else name for name in NAMES]


@pytest.fixture(scope="session")
def made() -> Any:
    return module(LOOPS / "make_data.py")


@pytest.fixture(scope="session")
def data(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loops")
    made.write_images(root, 0.95, 0)
    made.write_counterfactuals(root, 0)
    return root


def run(*words: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_here(script: str, *words: str) -> str:
    """What a program prints, run in this process: starting another and importing torch there takes longer than training."""
    printed, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(sys, "argv", [script, *words]), contextlib.redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return printed.getvalue()


def accuracies(loop: str, version: str, data: Path) -> tuple[float, float]:
    place = ["--data-path", str(data)] if loop == "torchvision_reference" else [str(data)]
    epochs = ["--epochs", str(EPOCHS[loop])] if loop in EPOCHS else []
    script = str(LOOPS / loop / f"{version}.py")
    if loop in HERE:
        out = run_here(script, *place, *epochs)
    else:
        words = ["-m", *TWO.split()] if loop == "hf_accelerate" else []
        out = run(*words, script, *place, *epochs, folder=data)
    found = re.findall(r"^average (\S+) worst group (\S+)$", out, re.MULTILINE)
    assert len(found) == 1, out  # by one process of two
    return float(found[0][0]), float(found[0][1])


@pytest.mark.parametrize("loop", RUN)
def test_cfaug_raises_the_worst_group_of_the_loop(loop: str, data: Path) -> None:
    if loop.startswith("hf_"):
        pytest.importorskip("transformers" if loop == "hf_trainer" else "accelerate")
    before, after = accuracies(loop, "before", data), accuracies(loop, "after", data)
    assert before[1] < 0.1  # the shortcut is taken
    assert after[1] > before[1] + 0.3
    assert after[0] > before[0] + 0.2


@pytest.mark.slow
def test_the_trainer_runs_with_cfaug(data: Path) -> None:
    pytest.importorskip("transformers")
    assert accuracies("hf_trainer", "after", data)[1] > 0.3


@pytest.mark.slow  # with the ranks made in one process: tests/learn/test_dataset.py
def test_two_processes_draw_what_one_draws(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from cfaug import CounterfactualDataset

    log, loop = tmp_path / "seen", LOOPS / "hf_accelerate" / "after.py"
    script = Path(__file__).parents[1] / "helpers" / "recorded.py"
    run("-m", *TWO.split(), str(script), str(loop), str(log), str(data), "--epochs", "2", "--seed", "3", folder=data)
    seen = [[json.loads(line) for line in Path(f"{log}.{rank}").read_text().splitlines()] for rank in (0, 1)]
    one = CounterfactualDataset(
        ImageFolder(data / "train", transforms.ToTensor()), data / "counterfactuals", p=0.5, seed=3
    )
    swapped = 0
    for epoch in (0, 1):
        one.set_epoch(epoch)
        indices = [[i for e, i, *_ in rank if e == epoch] for rank in seen]
        assert sorted(indices[0] + indices[1]) == list(range(len(one)))  # disjoint, and all of them
        assert len(indices[0]) == len(indices[1])
        swapped += sum(one.provenance(i).row is not None for i in range(len(one)))
        for e, i, label, digest, *world in [*seen[0], *seen[1]]:
            assert world == [2, "gloo"]
            if e == epoch:
                image, own = one[i]
                assert (label, digest) == (own, hashlib.sha256(image.numpy().tobytes()).hexdigest())
    assert {e for rank in seen for e, *_ in rank} == {0, 1}
    assert 0.4 < swapped / (2 * len(one)) < 0.6


@pytest.mark.slow
def test_the_trainer_sets_epochs_in_two_processes(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    log, loop = tmp_path / "seen", LOOPS / "hf_trainer" / "after.py"
    script = Path(__file__).parents[1] / "helpers" / "recorded.py"
    run("-m", *TWO.split(), str(script), str(loop), str(log), str(data), "--epochs", "2", folder=data)
    seen = [[json.loads(line) for line in Path(f"{log}.{rank}").read_text().splitlines()] for rank in (0, 1)]
    for epoch in (0, 1):
        indices = [[i for e, i, *_ in rank if e == epoch] for rank in seen]
        assert sorted(indices[0] + indices[1]) == list(range(512))
    pictures = [{i: digest for rank in seen for e, i, _, digest, *_ in rank if e == epoch} for epoch in (0, 1)]
    assert 0.3 < np.mean([pictures[0][i] != pictures[1][i] for i in range(512)]) < 0.8


@pytest.mark.slow
def test_last_layer_retraining_on_counterfactuals_runs(data: Path) -> None:
    assert accuracies("sklearn_features", "dfr", data)[1] > 0.5


def test_the_stand_in_for_a_decoder_is_exact(made: Any, data: Path) -> None:
    from cfaug.offline.read import ShardReader

    reader = ShardReader(data / "counterfactuals")
    counts: dict[tuple[str, str], int] = {}
    for i in range(len(reader)):
        record = reader.record(i)
        source = np.asarray(Image.open(data / "train" / record["source_key"]))
        colour = record["attributes"]["colour"]
        assert np.array_equal(source, made.paint(source.max(2), record["factual"]["colour"]))
        assert np.array_equal(reader.image(i), made.paint(source.max(2), colour))
        counts[record["target"], colour] = counts.get((record["target"], colour), 0) + 1
    assert len(counts) == 16
    assert len(reader) == 2 * made.TRAIN
    per_digit = [[n for (digit, _), n in counts.items() if digit == d] for d in "3589"]
    assert all(max(found) - min(found) <= 1 for found in per_digit)


def changes(loop: str) -> list[str]:
    before, after = ((LOOPS / loop / f"{v}.py").read_text().splitlines(keepends=True) for v in ("before", "after"))
    return list(difflib.unified_diff(before, after, "before.py", "after.py", n=1))


@pytest.mark.parametrize("loop", NAMES)
def test_the_diff_is_the_diff(loop: str) -> None:
    assert (LOOPS / loop / "change.diff").read_text() == "".join(changes(loop))
    lines = [line for line in changes(loop) if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert not [line for line in lines if line.startswith("-")]  # nothing of the loop goes away
    assert len(lines) <= (3 if loop == "plain_pytorch" else 2)
    assert lines[0].startswith("+from cfaug import ")
    assert "cfaug" not in (LOOPS / loop / "before.py").read_text()


def test_the_readme_shows_every_diff_and_has_no_dead_link() -> None:
    text = (LOOPS / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"TODO|FIXME|@@\w+@@", text)
    for loop in NAMES:
        for line in changes(loop):
            if line[0] in "+-" and not line.startswith(("+++", "---")):
                assert re.sub(r"\s+", " ", line[1:]).strip() in re.sub(r"\s+", " ", text), (loop, line)
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert "://" in target or (LOOPS / target).exists(), target


def test_the_readme_has_the_measured_numbers() -> None:
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/loops.jsonl").read_text().splitlines()]
    text = (LOOPS / "README.md").read_text(encoding="utf-8")
    for loop in NAMES:
        cells = []
        for version in ("before", "after"):
            own = [row for row in rows if (row["loop"], row["version"]) == (loop, version)]
            assert [row["seed"] for row in own] == [0, 1, 2]
            cells += [f"{np.mean([row[name] for row in own]):.2f}" for name in ("average", "worst_group")]
        assert re.search(rf"\[{loop}\]\({loop}\) \| " + r" \| ".join(map(re.escape, cells)), text), (loop, cells)
    own = [row for row in rows if row["version"] == "dfr"]
    average, worst = (f"{np.mean([row[name] for row in own]):.2f}" for name in ("average", "worst_group"))
    assert f"{average} on average, {worst} in the worst group" in text


def test_the_loops_are_shipped() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    shipped = {
        path.relative_to(LOOPS)
        for pattern in config["options.package_data"]["cfaug.recipes"].split()
        if pattern.startswith("loops/")
        for path in LOOPS.parent.glob(pattern)
    }
    files = {p.relative_to(LOOPS) for p in LOOPS.rglob("*") if p.suffix in (".py", ".md", ".diff")}
    assert files == shipped
    assert (resources.files("cfaug.recipes") / "loops" / "plain_pytorch" / "after.py").is_file()
