"""SIGKILL of workers and of whole runs at random moments: the benchmark's campaign, small here, two hundred kills there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, 60])
def test_killed_runs_leave_nothing_half_written(tmp_path, kills: int) -> None:
    command = [sys.executable, str(CAMPAIGN), str(tmp_path), "--kills", str(kills), "--seed", str(kills)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kills.jsonl").read_text())
    assert found["parent"] + found["worker"] == kills
    assert found["files_compared"] > 80
    assert [found[name] for name in ("unverifiable", "wrong_manifests", "different_shards")] == [0, 0, 0]
    assert found["shards_lost"] <= 2 * kills
