"""Samples made again: what comes out the same, and what a difference is called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from cfaug.errors import DataError, ShardError, UsageError
from cfaug.offline import Plan, ShardReader, balance_groups, generate, write_shard
from cfaug.offline.format import Sample
from cfaug.offline.regenerate import regenerate as again

PLAN = balance_groups(tiny.dataset().table, tiny.schema(), per_image=2, null_fraction=0.2, samples_per_shard=14)


@dataclass(frozen=True)
class BatchModel(tiny.TinyModel):
    """What a GPU's kernels may do: the bytes of an image depend on what else is in its batch."""

    digest: str = "batch-model"

    def act(self, interventions: Any) -> Any:
        return _Batch(super().act(interventions))


@dataclass(frozen=True)
class _Batch:
    acted: Any

    def predict(self, noise: Any) -> Any:
        made, table = self.acted.predict(noise)
        return (made + made.mean()).clamp(-1, 1), table


@dataclass(frozen=True)
class NoTens:
    """A gate that rejects by key."""

    digest: str = "no-tens"

    def __call__(self, images: Any, records: Any, sources: Any) -> list[bool]:
        return [not record["key"].endswith("0") for record in records]


def made(out: Path, model: Any = None, batch_size: int = 4, **options: Any) -> Path:
    options = {"workers": 0, "progress": False, **options}
    generate(model or tiny.model(), tiny.dataset(), PLAN, out, batch_size=batch_size, **options)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("image", "batch_size"), [("png", 5), ("png-stored", 4), ("webp", 64)])
def test_every_sample_comes_out_again(tmp_path: Path, image: str, batch_size: int) -> None:
    made(tmp_path, BatchModel(tiny.schema()), batch_size, image=image)
    found = again(BatchModel(tiny.schema()), tiny.dataset(), PLAN, tmp_path, n=10**6)
    assert found.ok, str(found)
    shards = len(PLAN.shards())
    sizes = [len(PLAN.rows_of(shard)) for shard in PLAN.shards()]
    assert shards > 3
    assert found.counts == {
        "samples": len(PLAN), "identical": len(PLAN), "different": 0,
        "batches": sum(-(-size // batch_size) for size in sizes),
    }  # fmt: skip
    assert found.environment == ()


def test_a_few_samples_take_a_few_whole_batches(run, tmp_path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    found = again(tiny.model(mark=str(marks), batch=4), tiny.dataset(), PLAN, run / "shards", n=3, seed=5)
    assert found.counts["samples"] == 3
    assert found.counts["batches"] == len(list(marks.iterdir())) <= 3
    assert str(found).startswith("ok: 3 samples, 3 identical, 0 different")


def test_the_draw_is_uniform_and_by_seed(run) -> None:
    manifest = ShardReader(run).manifest
    counts: dict[tuple[str, int], int] = {}
    for seed in range(2000):
        drawn = [
            (row.name, i) for row, positions in regenerate_module().draw_samples(manifest, 5, seed) for i in positions
        ]
        assert len(set(drawn)) == 5
        for one in drawn:
            counts[one] = counts.get(one, 0) + 1
    expected = 2000 * 5 / len(PLAN)
    assert set(counts) == {(row.name, i) for row in manifest for i in range(row.count)}
    # binomial: five standard deviations for each of some sixty cells
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    assert regenerate_module().draw_samples(manifest, 5, 1) == regenerate_module().draw_samples(manifest, 5, 1)


def regenerate_module() -> Any:
    import sys

    return sys.modules["cfaug.offline.regenerate"]


def test_another_model_or_plan_is_said_and_nothing_is_made(run) -> None:
    found = again(tiny.model(digest="other", broken="nan"), tiny.dataset(), PLAN, run)
    assert not found.ok
    assert found.problems == (
        "expected the model that the shards were made from, tiny-model-1, got other; give that model, nothing was compared",
    )
    other = balance_groups(tiny.dataset().table, tiny.schema(), seed=1)
    (problem,) = again(tiny.model(), tiny.dataset(), other, run).problems
    assert problem.startswith(
        f"expected the plan that the shards were made from, {PLAN.digest:.16}, got {other.digest:.16}"
    )


def test_other_pixels_say_by_how_much(run) -> None:
    found = again(tiny.model(broken="random"), tiny.dataset(), PLAN, run, n=10**6)
    assert not found.ok
    # an image that do() made white stays white whatever it is multiplied with; a reconstruction never is
    assert found.counts["different"] >= PLAN.summary.nulls > 5
    assert found.counts["different"] + found.counts["identical"] == len(PLAN)
    assert found.environment == ()
    assert all(".tar, sample 'train-" in problem for problem in found.problems)
    records, images = ([p for p in found.problems if what in p] for what in ("the record comes", "the image comes"))
    assert len(records) + len(images) == len(found.problems)
    assert all("comes out differently: quality.change_l1 0" in problem for problem in records)
    assert all(" of 64 pixels, by " in problem for problem in images)


def test_other_sources_are_named_by_field(run) -> None:
    found = again(tiny.model(), tiny.dataset(seed=9), PLAN, run, n=1)
    assert "source_digest '" in found.problems[0]
    with pytest.raises(DataError, match="is not in the data set"):
        again(tiny.model(), tiny.dataset(2), PLAN, run, n=20)


def test_another_environment_is_said_and_excuses_nothing(run, monkeypatch) -> None:
    real = regenerate_module().environment_of
    monkeypatch.setattr(
        regenerate_module(), "environment_of", lambda *a: {**real(*a), "torch": "1.0", "device": "cuda"}
    )
    found = again(tiny.model(), tiny.dataset(), PLAN, run, n=2)
    assert found.ok
    assert found.environment[0] == "device cpu then, cuda now"
    assert found.environment[1].startswith("torch ")
    assert "environment differs: device cpu then, cuda now" in str(found)
    assert "prove nothing" not in str(found)
    found = again(tiny.model(broken="random"), tiny.dataset(), PLAN, run, n=30)
    assert not found.ok
    assert str(found).endswith("prove nothing; regenerate in the old environment")


def altered(tmp_path: Path, change: Any, image: str = "png", said: Any = None) -> Path:
    """The run written again with one sample of each shard changed: consistent shards of altered content."""
    source = made(tmp_path / "source", image=image)
    reader = ShardReader(source)
    place, start = tmp_path / "altered", 0
    for row in reader.manifest:
        samples = [reader.sample(start + i) for i in range(row.count)]
        samples[3] = change(samples[3])
        write_shard(place, row.name, samples, row.plan, row.model, {**row.environment, "image": said or image})
        start += row.count
    return place


@pytest.mark.parametrize("said", ["webp", "gif", 7])
def test_a_manifest_that_misnames_its_images_is_read(tmp_path, said: Any) -> None:
    place = altered(tmp_path, lambda sample: sample, said=said)
    found = again(tiny.model(), tiny.dataset(), PLAN, place, n=3)
    assert (found.counts["identical"], found.counts["different"]) == (3, 0)


def test_one_altered_value_among_all_is_found(tmp_path) -> None:
    def change(sample: Sample) -> Sample:
        record = json.loads(json.dumps(sample.record))
        record["attributes"]["ground"] = "light" if record["attributes"]["ground"] == "dark" else "dark"
        return Sample(sample.key, sample.image, record)

    place = altered(tmp_path, change)
    found = again(tiny.model(), tiny.dataset(), PLAN, place, n=10**6)
    assert found.counts["different"] == len(found.problems) == len(PLAN.shards())
    assert all("the record comes out differently: attributes.ground" in problem for problem in found.problems)


def test_one_altered_bit_among_all_is_found(tmp_path) -> None:
    def change(sample: Sample) -> Sample:
        image = sample.image.copy()
        image[2, 3, 1] ^= 1
        return Sample(sample.key, image, sample.record)

    found = again(tiny.model(), tiny.dataset(), PLAN, altered(tmp_path, change), n=10**6)
    assert found.counts["different"] == len(found.problems) == len(PLAN.shards())
    assert all("1 of 64 pixels, by 1 of 255 at most" in problem for problem in found.problems)


def test_what_a_gate_rejected_is_not_missed(tmp_path) -> None:
    made(tmp_path, gate=NoTens())
    found = again(tiny.model(), tiny.dataset(), PLAN, tmp_path, n=10**6, gate=NoTens())
    assert found.ok, str(found)
    assert found.counts["samples"] == len(ShardReader(tmp_path)) < len(PLAN)
    without = again(tiny.model(), tiny.dataset(), PLAN, tmp_path, n=2)
    assert without.environment == ("gate no-tens then, none now",)
    assert without.ok


def test_damage_and_foreign_samples_are_reported(tmp_path) -> None:
    made(tmp_path)
    tar = sorted((tmp_path / "shards").glob("*.tar"))[1]
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes()[:-512])
    found = again(tiny.model(), tiny.dataset(), PLAN, tmp_path, n=10**6)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{tar.name}: expected ")
    assert found.counts["different"] == len(PLAN.rows_of(1))

    foreign = altered(
        tmp_path / "x", lambda s: Sample("strange", s.image, {**s.record, "key": "strange"}) if s.key in keys else s
    )
    found = again(tiny.model(), tiny.dataset(), PLAN, foreign, n=10**6)
    assert found.problems == (
        "cf-train-000002.tar, sample 'strange': expected a row of the plan in this shard, got none with this key; give its own plan",
    )


keys = {PLAN.rows_of(2)[3].key}


def test_wrong_calls_are_one_line(run, tmp_path) -> None:
    with pytest.raises(UsageError, match="at least 1 sample"):
        again(tiny.model(), tiny.dataset(), PLAN, run, n=0)
    with pytest.raises(ShardError, match="generate first"):
        again(tiny.model(), tiny.dataset(), PLAN, tmp_path)
    reader = ShardReader(run)
    write_shard(tmp_path, reader.manifest[0].name, [reader.sample(0)], PLAN.digest, "tiny-model-1")
    with pytest.raises(ShardError, match="expected a batch size in the manifest"):
        again(tiny.model(), tiny.dataset(), PLAN, tmp_path)


def test_of_a_saved_plan(run, tmp_path) -> None:
    PLAN.save(tmp_path)
    assert again(tiny.model(), tiny.dataset(), Plan.load(tmp_path), run, n=5).ok
