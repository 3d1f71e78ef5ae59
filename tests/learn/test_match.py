"""Which samples belong to which image, and one line that says why where nothing does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.coloured_shards import N, source, write
from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.data import ArrayDataset, Attribute, Schema, pixel_digest
from cfaug.data.pixel_hashes import pixels_hash, sample_hash
from cfaug.errors import DataError, UsageError
from cfaug.learn import CounterfactualDataset
from cfaug.learn.guard import open_training_shards
from cfaug.learn.match import keys_of
from cfaug.offline import write_shard
from cfaug.offline.read import Sample, SourceHashes


class Pictures(Dataset[Any]):
    """PIL images and labels, no key: matched by pixels."""

    def __init__(self, data: ArrayDataset, labels: list[Any] | None = None) -> None:
        self.items = [data[i] for i in range(len(data))]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Image.Image, Any]:
        image, label = self.items[i]
        return image, label if self.labels is None else self.labels[i]


def test_pixels_find_the_same_samples_as_keys(base: ArrayDataset, shards: Path) -> None:
    by_key, by_pixels = CounterfactualDataset(base, shards), CounterfactualDataset(Pictures(base), shards)
    assert (by_key.matches.table, by_pixels.matches.table) == ("by_key", "by_pixels")
    for epoch in range(3):
        assert np.array_equal(by_key.draws(epoch)[1], by_pixels.draws(epoch)[1])


def test_an_image_folder_is_matched_by_its_paths(tmp_path: Path, base: ArrayDataset) -> None:
    named = source()
    named._keys = [f"{i % 2}/{i:02d}.png" for i in range(N)]
    directory = write(tmp_path / "shards", named)
    for i in range(N):
        path = tmp_path / "images" / named.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(base.image(i)).save(path)
    folder = ImageFolder(str(tmp_path / "images"))
    mixed = CounterfactualDataset(folder, directory, p=1.0)
    assert mixed.matches.table == "by_key"
    assert mixed.classes == ["0", "1"]
    for i in (0, 1, N - 1):
        row = mixed.provenance(i).row
        assert row is not None
        assert mixed.reader.record(row)["source_key"] == os.path.relpath(folder.samples[i][0], folder.root)
        assert mixed[i][1] == folder[i][1]
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    folder = ImageFolder(str(tmp_path / "elsewhere"))
    assert CounterfactualDataset(folder, directory).matches.table == "by_key"


def test_keys_of_a_different_kind_fall_back_to_pixels(base: ArrayDataset, shards: Path) -> None:
    renamed = source()
    renamed._keys = [f"renamed-{i}" for i in range(N)]
    assert CounterfactualDataset(renamed, shards).matches.table == "by_pixels"
    with pytest.raises(DataError, match="first key is 'x0'"):  # the caller's own are believed to be meant
        CounterfactualDataset(renamed, shards, key=lambda i: f"x{i}")


def large(directory: Path) -> ArrayDataset:
    """Four images of 40 x 40 pixels that agree on the grid by which images are recognised; samples of the first two."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 255, (1, 40, 40, 3), dtype=np.uint8), 4, axis=0)
    images[:, 0, 0, 0] = [1, 2, 3, 4]  # the grid begins at (1, 1)
    table = pd.DataFrame({"digit": ["0", "1"] * 2}, index=[f"large-{i}" for i in range(4)])
    data = ArrayDataset(images, table, Schema([Attribute("digit")], "digit").fit(table))
    assert len({sample_hash(image) for image in images}) == 1
    samples = []
    for i in range(2):
        record = {
            "schema": 1, "key": f"train-{i}", "source_key": data.key(i), "source_digest": pixel_digest(images[i]),
            "split": "train", "do": {"colour": "red"}, "attributes": {"colour": "red"}, "factual": {"colour": "blue"},
            "target": str(i), "seed": i, "replica": 0, "model": "m" * 64, "quality": {},
        }  # fmt: skip
        hashes = SourceHashes(sample_hash(images[i]), pixels_hash(images[i]))
        samples.append(Sample(f"train-{i}", np.full((40, 40, 3), i, np.uint8), record, hashes))
    write_shard(directory / "both", "cf-train-000000.tar", samples, "p" * 64, "m" * 64)
    write_shard(directory / "one", "cf-train-000000.tar", samples[:1], "p" * 64, "m" * 64)
    return data


def test_a_shared_grid_is_no_match(tmp_path: Path) -> None:
    data = large(tmp_path)
    for shards, known in (("one", [True, False, False, False]), ("both", [True, True, False, False])):
        mixed = CounterfactualDataset(Pictures(data), tmp_path / shards, p=1.0)
        assert (mixed.matches.total > 0).tolist() == known
        rows = [mixed.provenance(i).row for i in range(4)]
        assert rows == [i if known[i] else None for i in range(4)]
        CounterfactualDataset(Pictures(data), tmp_path / shards, held_out=[Pictures(base_of(data, [2, 3]))])
    with pytest.raises(DataError, match="sample 'train-1', whose source is image 1"):
        open_training_shards(tmp_path / "both", held_out=[Pictures(base_of(data, [3, 1]))])


class Flipping(Pictures):
    """Augments by itself, before anything that could be called a transform."""

    def __getitem__(self, i: int) -> tuple[Image.Image, Any]:
        image, label = super().__getitem__(i)
        return (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image), label


def test_an_augmentation_before_the_transform_is_refused(base: ArrayDataset, shards: Path) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match="an augmentation before its transform would be missing in counterfactuals"):
        CounterfactualDataset(Flipping(base), shards)
    assert torch.equal(torch.get_rng_state(), state)


def base_of(data: ArrayDataset, rows: list[int]) -> ArrayDataset:
    return ArrayDataset(data.images[rows], data.table.iloc[rows], data.schema)


def test_keys_are_those_that_a_data_set_knows(tmp_path: Path, base: ArrayDataset) -> None:
    for place in ("a", "b"):
        for i in range(4):
            path = tmp_path / place / str(i % 2) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            base[i][0].save(path)
    first, second = (ImageFolder(str(tmp_path / place)) for place in "ab")
    names = ["0/0.png", "0/2.png", "1/1.png", "1/3.png"]
    assert keys_of(first) == names
    assert keys_of(Subset(first, [3, -4])) == [names[3], names[0]]
    assert keys_of(ConcatDataset([first, Subset(first, [1])])) == [*names, names[1]]
    assert keys_of(ConcatDataset([first, second])) is None  # the same names mean different images there
    assert keys_of(ConcatDataset([first, Subset(base, [2])])) == [*names, "train-02"]
    assert keys_of(Pictures(base)) is None


class Changed(Dataset[Any]):
    """Images that something was done to before they are shown."""

    def __init__(self, data: ArrayDataset, change: Callable[[Any], Any]) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        image, label = self.data[i]
        return self.change(image), label


WHY: list[tuple[Callable[[Any], Any], str]] = [
    (v2.Grayscale(), "they are of mode L, the sources of mode RGB"),
    (v2.CenterCrop(6), "they are 6 x 6 pixels, the sources 8 x 8 pixels; crop or resize in the transform"),
    (lambda image: image.rotate(90), "apply the EXIF orientation where the base opens its images"),
    (lambda image: v2.functional.pil_to_tensor(image.rotate(-90)), "apply the EXIF orientation"),
    (ImageOps.mirror, "apply the EXIF orientation"),
    (ImageOps.invert, "they have other pixels: this is a different version of the images"),
]


@pytest.mark.parametrize(("change", "why"), WHY)
def test_images_that_do_not_match_say_why(base: ArrayDataset, shards: Path, change: Any, why: str) -> None:
    for key, says in (
        (None, "got none for 40 of 40: no image has the pixels of a source; "),
        (base.key, "image 'train-00' .*"),
    ):
        with pytest.raises(DataError, match=f"{says}.*{why}") as caught:
            CounterfactualDataset(Changed(base, change), shards, key=key)
        assert "\n" not in str(caught.value)


def test_some_turned_images_are_told(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = {base.image(i).tobytes() for i in range(0, N, 3)}
    some = Changed(base, lambda image: image.rotate(90) if image.tobytes() in turned else image)
    mixed = CounterfactualDataset(some, shards, p=1.0)
    assert np.count_nonzero(mixed.matches.total) == N - 14
    assert (
        "14 of 40 images are not matched, and some of them are sources that were rotated or mirrored: apply the EXIF"
        in caplog.text
    )


def test_upright_shards_match_upright_images(tmp_path: Path, base: ArrayDataset) -> None:
    shards = write(tmp_path / "shards", source())
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(N):
        path = tmp_path / "images" / str(i % 2) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        base[i][0].rotate(90).save(path, exif=exif)

    def upright(path: str) -> Image.Image:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")

    with pytest.raises(DataError, match="EXIF orientation"):
        CounterfactualDataset(ImageFolder(str(tmp_path / "images")), shards)
    mixed = CounterfactualDataset(ImageFolder(str(tmp_path / "images"), loader=upright), shards, p=1.0)
    assert mixed.matches.total.all()


def test_pixels_that_differ_under_the_same_keys_are_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="expected image 'train-00' to have the pixels of the source"):
        CounterfactualDataset(source(seed=9), shards)


def test_matching_advances_no_generator(base: ArrayDataset, shards: Path) -> None:
    class Drawing(Pictures):
        def __getitem__(self, i: int) -> Any:
            torch.rand(1), np.random.random()
            return super().__getitem__(i)

    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    CounterfactualDataset(Drawing(base), shards)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_how_many_match_is_logged(base: ArrayDataset, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        CounterfactualDataset(Pictures(base), make(base, every=4), p=1.0)
    assert "10 of 40 images have samples" in caplog.text
