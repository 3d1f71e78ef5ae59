"""The readers other people use, for real: webdataset and Hugging Face datasets, on shards whose `do` varies."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from cfaug.causal.intervention import do
from cfaug.data import ArrayDataset
from cfaug.offline import Plan, PlanRow, ShardReader, balance_groups, generate

# Nulls first, then subsets of the names: the worst order for a reader that infers the schema from five samples.
MIXED = [do()] * 6 + [do(colour="red"), do(ground="dark"), do(thickness=1.0), do(), do(colour="blue", ground="light")]


@pytest.fixture(scope="module", params=["png", "webp"])
def mixed(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed")
    rows = [PlanRow(f"train-{i:03d}", f"source {i}.png", d, i, i // 6, 0) for i, d in enumerate(MIXED)]
    plan = Plan(rows, samples_per_shard=6)
    generate(tiny.model(), tiny.dataset(), plan, out, workers=0, progress=False, image=request.param)
    return out


@pytest.fixture(scope="module", params=["png", "webp"])
def balanced(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("balanced")
    plan = balance_groups(tiny.dataset().table, tiny.schema(), null_fraction=0.5, samples_per_shard=16)
    generate(tiny.model(), tiny.dataset(), plan, out, workers=0, progress=False, image=request.param)
    return out


def check_samples(found: list[dict], reader: ShardReader) -> None:
    """What webdataset made of all shards, in any order of the samples."""
    assert sorted(s["__key__"] for s in found) == sorted(reader.keys)
    place = {key: i for i, key in enumerate(reader.keys)}
    for s in found:
        i = place[s["__key__"]]
        image = reader.index[i].image_field
        assert {k for k in s if not k.startswith("__")} == {"json", image}
        assert s["json"] == reader.record(i)
        np.testing.assert_array_equal(s[image], reader.image(i))


def as_it_is(sample: dict) -> dict:
    return sample


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_reads_every_sample_once(mixed, workers: int) -> None:
    import torch
    import webdataset

    reader = ShardReader(mixed)
    tars = [str(mixed / "shards" / row.name) for row in reader.manifest]
    assert len(tars) == 2
    data = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    found = list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, collate_fn=as_it_is))
    if not workers:
        assert [s["__key__"] for s in found] == reader.keys
    check_samples(found, reader)


def test_webdataset_shuffles_and_picks_fields(balanced) -> None:
    import webdataset

    reader = ShardReader(balanced)
    tars = [str(balanced / "shards" / row.name) for row in reader.manifest]
    data = webdataset.WebDataset(tars, shardshuffle=10, seed=1).shuffle(20, seed=1).decode("rgb8")
    pairs = list(data.to_tuple("png;webp", "json"))
    assert [record["key"] for _, record in pairs] != reader.keys
    found = [{"__key__": r["key"], reader.index[0].image_field: image, "json": r} for image, r in pairs]
    check_samples(found, reader)


def check_rows(rows: list, reader: ShardReader, names: tuple[str, ...]) -> None:
    assert [row["json"]["key"] for row in rows] == reader.keys
    for i, row in enumerate(rows):
        record = reader.record(i)
        assert row["json"] == {**record, "do": {name: record["do"].get(name) for name in names}}
        np.testing.assert_array_equal(np.asarray(row[reader.index[i].image_field]), reader.image(i))


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_datasets_reads_a_directory_by_its_card(mixed, tmp_path, streaming: bool) -> None:
    import datasets

    options = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path)}
    rows = list(datasets.load_dataset(str(mixed / "shards"), **options))
    check_rows(rows, ShardReader(mixed), ("colour", "ground", "thickness"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_datasets_infers_the_schema_from_a_balanced_plan(balanced, tmp_path, streaming: bool) -> None:
    import datasets

    reader = ShardReader(balanced)
    tars = [str(balanced / "shards" / row.name) for row in reader.manifest]
    assert any(row.null for row in reader.index)
    for files in (tars, tars[::-1]):  # any shard may be the first
        options = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path)}
        rows = list(datasets.load_dataset("webdataset", data_files=files, **options))
        rows.sort(key=lambda row: row["json"]["key"])
        check_rows(rows, reader, ("colour", "ground", "thickness"))


def test_why_real_rows_lead_and_the_card_states_the_schema(mixed, tmp_path) -> None:
    """Without both, `datasets` drops the interventions and says nothing. If this fails, the trap is gone: rejoice."""
    import datasets

    tar = str(mixed / "shards" / "cf-train-000000.tar")
    second = str(mixed / "shards" / "cf-train-000001.tar")
    rows = list(datasets.load_dataset("webdataset", data_files=[tar, second], split="train", cache_dir=str(tmp_path)))
    assert all(row["json"]["do"] == {} for row in rows)


@pytest.mark.parametrize("mixed", ["png"], indirect=True)
def test_reading_needs_neither_torch_nor_webdataset_nor_diffusers(mixed) -> None:
    code = f"""
        import sys
        from cfaug.offline.read import ShardReader
        reader = ShardReader({str(mixed)!r})
        reader.sample(0)
        print([name for name in ("torch", "webdataset", "diffusers", "sklearn", "scipy") if name in sys.modules])
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("streaming", "image"), [(False, "webp"), pytest.param(True, "png", marks=pytest.mark.slow)])
def test_hf_datasets_reads_what_some_sources_lack(tmp_path, streaming: bool, image: str) -> None:
    """By the card, and by what it infers from the first samples, whichever shard comes first."""
    import datasets

    data = tiny.dataset(40)
    partial = data.table.copy()
    lacking = np.random.default_rng(0).random(40) < 0.9
    partial.loc[lacking, "colour"] = None
    partial.loc[~lacking, "thickness"] = np.nan
    holes = ArrayDataset(data.images, partial, data.schema)
    plan = balance_groups(partial, data.schema, null_fraction=0.5, samples_per_shard=30, attributes=["ground"])
    generate(tiny.model(), holes, plan, tmp_path, workers=0, progress=False, image=image)
    reader = ShardReader(tmp_path)
    found = [reader.record(i) for i in range(len(reader))]
    assert {r["factual"]["colour"] for r in found} > {None, "red"}
    assert {type(r["attributes"]["thickness"]) for r in found} == {type(None), float}
    tars = [str(tmp_path / "shards" / row.name) for row in reader.manifest]
    options = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    check_rows(list(datasets.load_dataset(str(tmp_path / "shards"), **options)), reader, ("ground",))
    for first in range(len(tars)):
        files = tars[first:] + tars[:first]
        rows = list(datasets.load_dataset("webdataset", data_files=files, **options))
        check_rows(sorted(rows, key=lambda row: row["json"]["key"]), reader, ("ground",))
