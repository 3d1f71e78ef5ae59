"""Several processes generate one plan through the command line: torchrun and srun, as their users start them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, contents, folder, folder_recipe

from cfaug.cli import main
from cfaug.offline import ShardReader, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the directory of its model, its plan and the shards that one process made."""
    place = tmp_path_factory.mktemp("sharing")
    recipe = folder_recipe(place / "recipe.yaml", folder(place / "birds"), generate={"samples_per_shard": 10})
    assert main(["generate", str(recipe), "--out", str(place / "alone"), "--no-progress"]) == 0
    return recipe, place / "alone"


def with_its_model(out: Path, alone: Path) -> Path:
    """A directory that has got as far as the plan."""
    return Path(shutil.copytree(alone, out, ignore=shutil.ignore_patterns("shards", "stats*")))


def shards_of(out: Path) -> tuple[dict[str, str], list[bytes]]:
    """sha256 of every file and the manifest's rows; ranks may commit in any order."""
    shards = out / "shards"
    whole = {name: digest for name, digest in contents(shards).items() if not name.startswith((".", "manifest"))}
    return whole, sorted((shards / "manifest.jsonl").read_bytes().splitlines())


def start(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow  # the default suite sets the launcher's variables itself: test_ranks_do_their_parts_whenever_they_come
def test_ranks_of_a_real_torchrun_share_a_plan(made: Any, tmp_path: Path, capsys: Any) -> None:
    recipe, alone = made
    out = with_its_model(tmp_path / "out", alone)
    ranks = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "cfaug")
    share = ("generate", recipe, "--out", out, "--generate.engine=torchrun")
    done = start(*ranks, *share, "--no-progress")
    assert done.returncode == 0, done.stderr
    assert shards_of(out) == shards_of(alone)
    assert sorted(path.name for path in out.glob("stats*.jsonl")) == ["stats-0.jsonl", "stats-1.jsonl"]


@pytest.mark.parametrize(
    ("engine", "rank", "world", "how"),
    [
        ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "srun -n N"),
        ("torchrun", "RANK", "WORLD_SIZE", "torchrun --nproc-per-node"),
    ],
)
def test_ranks_do_their_parts_whenever_they_come(
    made: Any, tmp_path: Path, capsys: Any, monkeypatch: Any, engine: str, rank: str, world: str, how: str
) -> None:
    recipe, alone = made
    out = tmp_path / "out"
    setting = f"--generate.engine={engine}"
    share = ("generate", recipe, "--out", out, setting)
    refused = call(capsys, *share)
    assert refused.code == 2
    assert how in refused.complaint
    monkeypatch.setenv(rank, "1")
    monkeypatch.setenv(world, "2")
    early = call(capsys, *share)
    assert early.code == 2
    assert "expected a model and a plan in" in early.complaint
    gated = call(capsys, *share, "--gate.enabled=true")
    assert "expected a model with its gate and a plan in" in gated.complaint  # or each rank would make its own
    shutil.rmtree(out, ignore_errors=True)
    with_its_model(out, alone)
    first = call(capsys, *share)
    assert first.code == 0, first.err
    assert "others still to come" in first.out
    assert len(ShardReader(out).manifest) == 3
    with monkeypatch.context() as patch:
        patch.delenv(rank)  # of torchrun's ranks only generate and fit know
        waiting = call(capsys, "train", recipe, "--out", out, setting)
    assert waiting.code == 2
    assert "run `cfaug generate` with it first" in waiting.complaint
    assert f"expected no --overwrite with the engine {engine}" in call(capsys, *share, "--overwrite").complaint
    monkeypatch.setenv(rank, "0")
    second = call(capsys, *share)
    assert second.code == 0, second.err
    assert "others still" not in second.out
    assert verify(out).ok
    assert shards_of(out) == shards_of(alone)
    monkeypatch.delenv(rank)
    rows = call(capsys, "train", recipe, "--out", out, setting)  # all shards are there
    assert rows.code == 0, rows.complaint


def test_shards_go_to_the_destination(made: Any, tmp_path: Path, capsys: Any) -> None:
    recipe, alone = made
    out, place = with_its_model(tmp_path / "out", alone), tmp_path / "elsewhere"
    setting = f"--generate.destination={place}"
    assert call(capsys, "train", recipe, "--out", out, setting).code == 0
    assert not (out / "shards").exists()
    checked = call(
        capsys, "verify", out, "--regenerate", "3", "--json", "--no-progress"
    )  # a run knows where its shards are
    assert checked.code == 0, checked.out
    assert json.loads(checked.out)["regenerated"]["counts"]["identical"] == 3
    assert re.match(rf"place +{re.escape(str(place))}", call(capsys, "inspect", out, "--no-progress").out)
    assert call(capsys, "generate", recipe, "--out", out, setting).code == 0
    again = call(capsys, "generate", recipe, "--out", out, setting, "--overwrite", "--seed", "5")
    assert again.code == 0, again.complaint
    assert verify(place).ok
