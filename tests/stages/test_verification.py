"""A finished run makes its own samples again; what is not a run is told in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cfaug.errors import UsageError
from cfaug.stages.verification import regenerate_run


def test_a_run_makes_its_samples_again(finished: Path) -> None:
    found = regenerate_run(finished, n=6)
    assert found.ok, str(found)
    assert found.counts["samples"] == found.counts["identical"] == 6
    assert found.environment == ()
    assert regenerate_run(finished / "shards", n=1).ok


def test_without_model_configuration_or_data_it_is_one_line(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, words in (("config.yaml", "its configuration"), ("model", "its model"), ("plan", "its plan")):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        with pytest.raises(UsageError, match=f"^expected a run with {words}, but .* is missing; give the directory"):
            regenerate_run(run)
    with pytest.raises(UsageError, match="run's own directory"):
        regenerate_run("s3://bucket/run")
    assert not [path for path in tmp_path.iterdir() if path != run]


def test_other_images_are_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "data": "0" * 64}))
    with pytest.raises(UsageError, match=r"was made from other images or attributes \(data 000000000000, now "):
        regenerate_run(run)


def test_another_model_at_its_place_is_told_apart(finished: Path, tmp_path: Path) -> None:
    """A model of the same graph and schema with other weights: opened without complaint, but not of these shards."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    rows = (run / "shards" / "manifest.jsonl").read_text().splitlines()
    model = json.loads(rows[0])["model"]
    other = _with_another_model(run, model)
    found = regenerate_run(run, n=2)
    assert not found.ok
    assert found.problems == (
        f"expected the model that the shards were made from, {other:.16}, got {model:.16}; give that model, nothing was compared",
    )


def _with_another_model(run: Path, model: str) -> str:
    """The run's shards, rewritten as if another model had made them; returns its digest."""
    from cfaug.offline import ShardReader, write_shard
    from cfaug.offline.format import Sample

    other = "f" * len(model)
    reader = ShardReader(run)
    samples = [reader.sample(i) for i in range(len(reader))]
    manifest = reader.manifest
    shutil.rmtree(run / "shards")
    start = 0
    for row in manifest:
        here = [Sample(s.key, s.image, {**s.record, "model": other}) for s in samples[start : start + row.count]]
        write_shard(run / "shards", row.name, here, row.plan, other, dict(row.environment))
        start += row.count
    return other
