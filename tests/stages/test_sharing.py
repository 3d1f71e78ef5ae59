"""Several processes generate one plan through the command line: torchrun and srun, as their users start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, contents, folder, folder_recipe

from cfaug.offline import ShardReader, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a directory with its model and plan and the shards that one process has made."""
    place = tmp_path_factory.mktemp("sharing")
    recipe = folder_recipe(place / "recipe.yaml", folder(place / "birds"), generate={"samples_per_shard": 10})
    return recipe, place / "alone"


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


def test_ranks_share_a_plan_and_give_the_bytes_of_one_process(made: Any, tmp_path: Path, capsys: Any) -> None:
    recipe, alone = made
    assert call(capsys, "generate", recipe, "--out", alone).code == 0
    truth = shards_of(alone)
    out = tmp_path / "out"
    refused = call(capsys, "generate", recipe, "--out", out, "--generate.engine=torchrun")
    assert refused.code == 2
    assert "torchrun --nproc-per-node" in refused.complaint

    ranks = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "cfaug")
    share = ("generate", recipe, "--out", out, "--generate.engine=torchrun")
    for stage in ("fit", "plan"):
        assert call(capsys, stage, recipe, "--out", out).code == 0
    done = start(*ranks, *share, "--no-progress")
    assert done.returncode == 0, done.stderr
    assert shards_of(out) == truth
    assert sorted(path.name for path in out.glob("stats*.jsonl")) == ["stats-0.jsonl", "stats-1.jsonl"]
    rows = call(capsys, "train", recipe, "--out", out, "--generate.engine=torchrun")  # all shards are there
    assert rows.code == 0, rows.complaint


def test_srun_ranks_do_their_parts_whenever_they_come(made: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    recipe, _ = made
    out = tmp_path / "out"
    share = ("generate", recipe, "--out", out, "--generate.engine=slurm")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    early = call(capsys, *share)
    assert early.code == 2
    assert "expected a model and a plan in" in early.complaint
    for stage in ("fit", "plan"):
        assert call(capsys, stage, recipe, "--out", out).code == 0
    first = call(capsys, *share)
    assert first.code == 0, first.err
    assert "others still to come" in first.out
    assert len(ShardReader(out).manifest) == 3
    waiting = call(capsys, "train", recipe, "--out", out, "--generate.engine=slurm")
    assert waiting.code == 2
    assert "run `cfaug generate` with it first" in waiting.complaint
    assert "expected no --overwrite with the engine slurm" in call(capsys, *share, "--overwrite").complaint
    monkeypatch.setenv("SLURM_PROCID", "0")
    second = call(capsys, *share)
    assert second.code == 0, second.err
    assert "others still" not in second.out
    assert verify(out).ok
    assert (out / "shards" / "README.md").exists()


def test_shards_go_to_the_destination(made: Any, tmp_path: Path, capsys: Any) -> None:
    recipe, _ = made
    out, place = tmp_path / "out", tmp_path / "elsewhere"
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
