"""MixingCollate over real WebDataset pipelines: drawn from the pixels, followed by transform, CutMix and MixUp."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import webdataset as wds
from helpers.coloured_shards import N, source
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.learn.collate import MixingCollate
from cfaug.offline.read import ShardReader

TO_TENSOR = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32)])


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, base: ArrayDataset) -> str:
    """The base's images in four tars; the class of image i is i."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(4):
        with wds.TarWriter(str(folder / f"train-{shard}.tar")) as sink:
            for i in range(shard, N, 4):
                png = io.BytesIO()
                base[i][0].save(png, "PNG")
                sink.write({"__key__": f"{i:04d}", "png": png.getvalue(), "cls": i})
    return str(folder / "train-{0..3}.tar")


def pipeline(tars: str, *names: str, shuffle: int = 0) -> Any:
    data = wds.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil")
    data = data.shuffle(shuffle) if shuffle else data
    return data.to_tuple(*names) if names else data.rename(image="png", label="cls", keep=False)


def stood(images: torch.Tensor, labels: torch.Tensor) -> dict[int, int]:
    """Label -> what stands there: 0 the real image, 1 or 11 a counterfactual, 21 the null."""
    found = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        values = image.unique()
        found[label] = int(values[0]) if len(values) == 1 else 0
    return found


def epoch(tars: str, collate: MixingCollate, workers: int = 0, batch: int = 6, shuffle: int = 0) -> dict[int, int]:
    loader: DataLoader[Any] = DataLoader(
        pipeline(tars, "png", "cls", shuffle=shuffle), batch_size=batch, num_workers=workers, collate_fn=collate
    )
    found: dict[int, int] = {}
    for images, labels in loader:
        found |= stood(images, labels)
    return found


def test_the_draw_is_the_pixels(tars: str, shards: Path) -> None:
    collate = MixingCollate(shards, p=0.4, null_p=0.3, transform=TO_TENSOR, seed=3)
    first = epoch(tars, collate)
    assert len(first) == N
    assert set(first.values()) == {0, 1, 11, 21}
    assert epoch(tars, collate, workers=2) == first
    assert epoch(tars, collate, batch=7, shuffle=20) == first
    assert epoch(tars, pickle.loads(pickle.dumps(collate))) == first
    swapped = sum(value > 0 for value in first.values())
    assert (collate.seen, collate.matched, collate.swapped) == (3 * N, 3 * N, 3 * swapped)
    collate.set_epoch(1)
    second = epoch(tars, collate)
    assert second != first
    assert epoch(tars, collate, workers=2) == second
    assert epoch(tars, MixingCollate(shards, p=0.4, null_p=0.3, transform=TO_TENSOR, seed=4)) != first


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_see_the_epoch(tars: str, shards: Path, start: str) -> None:
    collate = MixingCollate(shards, p=0.5, transform=TO_TENSOR)
    loader: DataLoader[Any] = DataLoader(
        pipeline(tars, "png", "cls"), batch_size=5, num_workers=2, collate_fn=collate, persistent_workers=True,
        multiprocessing_context=start,
    )  # fmt: skip
    for number in range(2):
        collate.set_epoch(number)
        found: dict[int, int] = {}
        for images, labels in loader:
            found |= stood(images, labels)
        assert found == epoch(tars, collate)
    assert collate.seen == 4 * N


@pytest.mark.parametrize(
    "mix",
    [v2.CutMix(num_classes=N, alpha=1.0), v2.MixUp(num_classes=N, alpha=1.0),
     v2.RandomChoice([v2.CutMix(num_classes=N), v2.MixUp(num_classes=N)])],
    ids=["cutmix", "mixup", "either"],
)  # fmt: skip
def test_composes_with_cutmix_and_mixup(tars: str, shards: Path, mix: Any) -> None:
    plain = MixingCollate(shards, p=1.0, transform=TO_TENSOR)
    mixing = MixingCollate(shards, p=1.0, transform=TO_TENSOR, then=mix)
    for before, after in zip(
        DataLoader(pipeline(tars, "png", "cls", "__key__"), batch_size=8, collate_fn=plain),
        DataLoader(pipeline(tars, "png", "cls", "__key__"), batch_size=8, collate_fn=mixing),
        strict=True,
    ):
        images, labels, keys = after
        torch.manual_seed(0)
        assert keys == before[2]
        assert labels.shape == (8, N)
        assert torch.allclose(labels.sum(dim=1), torch.ones(8))
        # every pixel lies between two counterfactuals; a real image has values far above
        assert images.max() <= 11
    torch.manual_seed(5)
    expected = mix(*before[:2])
    torch.manual_seed(5)
    samples = list(pipeline(tars, "png", "cls", "__key__"))[-8:]
    got = mixing(samples)
    assert torch.equal(expected[0], got[0])
    assert torch.equal(expected[1], got[1])


def test_dicts_and_wds_batched(tars: str, shards: Path) -> None:
    collate = MixingCollate(shards, p=1.0, transform=TO_TENSOR)
    (batch,) = pipeline(tars).batched(N, collation_fn=collate)
    assert set(stood(batch["image"], batch["label"]).values()) == {1, 11}
    mixed = MixingCollate(shards, p=1.0, transform=TO_TENSOR, then=v2.MixUp(num_classes=N))
    (batch,) = DataLoader(pipeline(tars), batch_size=N, collate_fn=mixed)
    assert batch["label"].shape == (N, N)
    assert batch["image"].max() <= 11


def test_image_key_chooses_among_images(shards: Path, base: ArrayDataset) -> None:
    both = MixingCollate(shards, p=1.0, transform=TO_TENSOR, image_key="left")([{"left": base[0][0], "right": 1}])
    assert both["left"].max() <= 11


class Sample(NamedTuple):
    image: Any
    label: int
    note: str


def test_named_tuples_stay(base: ArrayDataset, shards: Path) -> None:
    samples = [Sample(base[i][0], i, f"note {i}") for i in range(8)]
    batch = MixingCollate(shards, p=1.0, transform=v2.PILToTensor())(samples)
    assert (type(batch).__name__, batch.label.tolist(), batch.note[3]) == ("Sample", list(range(8)), "note 3")
    assert set(batch.image.flatten(1)[:, 0].tolist()) <= {1, 11}


def test_an_image_is_looked_up_once(base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, lookup = [], ShardReader.lookup
    monkeypatch.setattr(ShardReader, "lookup", lambda self, image: (asked.append(1), lookup(self, image))[1])
    MixingCollate(shards, 1.0, transform=v2.PILToTensor())([base[i] for i in range(N)])
    assert len(asked) == N


def test_strangers_pass_through(shards: Path) -> None:
    collate = MixingCollate(shards, p=1.0, transform=v2.PILToTensor())
    other = source(seed=9)
    images = collate([other[i][0] for i in range(4)])  # bare images, no labels
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), other.images[:4])
    assert isinstance(other[0][0], Image.Image)
    assert (collate.seen, collate.matched) == (4, 0)
