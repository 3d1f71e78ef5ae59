"""The stream is a real webdataset pipeline whose order (seed, epoch) alone determine, shared evenly by ranks and workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from helpers.coloured_shards import N, source, write
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import DataError, ShardError
from cfaug.learn import CounterfactualStream


def keys(stream: Any, workers: int = 0, **options: Any) -> list[str]:
    return list(DataLoader(stream, batch_size=None, num_workers=workers, **options))


def keyed(shards: Path, **options: Any) -> Any:
    return CounterfactualStream(shards, None, item=lambda sample: sample.key, **options)


def test_items_are_images_and_codes(base: ArrayDataset, shards: Path) -> None:
    stream = CounterfactualStream(shards, 32, classes=["0", "1"])
    batches = list(DataLoader(stream, batch_size=None))
    assert [len(targets) for _, targets in batches] == [32, 32, 16]
    images = torch.cat([images for images, _ in batches])
    assert (images.dtype, images.shape, set(images.unique().tolist())) == (torch.uint8, (2 * N, 3, 8, 8), {1, 11})
    assert torch.cat([targets for _, targets in batches]).bincount().tolist() == [N, N]
    floats = CounterfactualStream(
        shards, 8, classes={"1": 5, "0": 3}, transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)])
    )
    images, targets = next(iter(floats))
    assert images.dtype == torch.float32
    assert set(targets.tolist()) <= {3, 5}


def test_it_is_a_pipeline_of_webdataset(shards: Path) -> None:
    stream = keyed(shards).compose(webdataset.batched(7, collation_fn=None))
    assert isinstance(stream, webdataset.DataPipeline)
    assert [len(batch) for batch in stream] == [7] * 11 + [3]


@pytest.mark.parametrize(
    ("kinds", "count"), [(["counterfactual"], 2 * N), (["null"], N), (("null", "counterfactual"), 3 * N)]
)
def test_kinds_are_those_asked_for(shards: Path, kinds: Any, count: int) -> None:
    stream = CounterfactualStream(shards, None, item=lambda sample: sample.record["do"] == {}, kinds=kinds)
    nulls = list(stream)
    assert len(nulls) == count
    assert sum(nulls) == (N if "null" in kinds else 0)


def test_the_order_is_a_function_of_seed_and_epoch(shards: Path) -> None:
    stream = keyed(shards, seed=1)
    first = keys(stream)
    assert len(set(first)) == 2 * N
    assert keys(stream) == first == keys(keyed(shards, seed=1))
    assert first != sorted(first)
    stream.set_epoch(1)
    second = keys(stream)
    assert second != first
    assert sorted(second) == sorted(first)
    assert keys(keyed(shards, seed=2)) != first


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_share_an_epoch_and_see_it_change(shards: Path, start: str) -> None:
    stream = CounterfactualStream(shards, None, classes=["0", "1"])
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=start)
    shown = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        shown.append([int(image[0, 0, 0]) for image, _ in loader])
    assert [len(values) for values in shown] == [2 * N, 2 * N]
    assert shown[0] != shown[1]
    assert sorted(keys(keyed(shards), workers=2)) == sorted(keys(keyed(shards)))  # nothing twice, nothing lost


def test_ranks_are_given_equally_many(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = keys(keyed(shards)), []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None, rank=rank: rank)
        parts.append(list(keyed(shards)))
    assert [len(part) for part in parts] == [26, 26, 26]  # of 80: two are left over
    assert [key for several in zip(*parts) for key in several] == whole[:78]


def test_an_unknown_target_names_the_sample(shards: Path) -> None:
    with pytest.raises(
        DataError, match=r"sample 'train-0000\d\d-\d': expected a target among the classes, got '1'; known: 0"
    ):
        list(CounterfactualStream(shards, 4, classes=["0"]))


def test_damage_is_seen(tmp_path: Path) -> None:
    place = write(tmp_path / "shards", source())
    tar = place / "cf-train-000000.tar"
    stream = CounterfactualStream(place, 4, classes=["0", "1"])
    data = np.fromfile(tar, np.uint8)
    data[1000::500] ^= 1
    data.tofile(tar)
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample"):
        list(stream)
