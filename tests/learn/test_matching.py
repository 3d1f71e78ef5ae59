"""Which samples belong to which image, the leak guard, and one line for whatever does not belong together."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.coloured_shards import N, source, write
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.data import ArrayDataset, Attribute, Schema, pixel_digest
from cfaug.data.lookup import pixels_hash, sample_hash
from cfaug.errors import DataError, ShardError, UsageError
from cfaug.learn import CounterfactualDataset
from cfaug.learn.guard import open_training_shards
from cfaug.learn.match import LABELS_CHECKED
from cfaug.learn.spread import spread
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


def test_keys_of_another_kind_fall_back_to_pixels(base: ArrayDataset, shards: Path) -> None:
    renamed = source()
    renamed._keys = [f"renamed-{i}" for i in range(N)]
    assert CounterfactualDataset(renamed, shards).matches.table == "by_pixels"
    with pytest.raises(DataError, match="first key is 'x0'"):  # the caller's own are believed to be meant
        CounterfactualDataset(renamed, shards, key=lambda i: f"x{i}")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([i % 3 for i in range(N)], "expected one (label of the base|target) for each (target|label)"),
        ([0] * N, "expected one target for each label"),
        (["cat" if i % 4 == 0 else "dog" for i in range(N)], "expected one target for each label, came '1'"),
    ],
)
def test_classes_that_are_not_those_of_the_shards(
    base: ArrayDataset, shards: Path, labels: list[Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        CounterfactualDataset(Pictures(base, labels), shards)
    mixed = CounterfactualDataset(Pictures(base, labels), shards, p=1.0, check_labels=False)
    assert [mixed[i][1] for i in range(N)] == labels
    CounterfactualDataset(Pictures(base, labels), shards, guard=False)


@pytest.mark.parametrize("kind", [int, str, np.int64, torch.tensor, lambda c: ("seven", "nine")[c]])
def test_names_numbers_and_tensors_are_one_to_one(base: ArrayDataset, shards: Path, kind: Callable[[int], Any]) -> None:
    labels = [kind(1 - i % 2) for i in range(N)]  # in another order, too
    assert CounterfactualDataset(Pictures(base, labels), shards, p=1.0)[3][1] == labels[3]


def test_a_few_labels_may_be_others(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = [1 - i % 2 if i in (3, 20) else i % 2 for i in range(N)]
    assert CounterfactualDataset(Pictures(base, labels), shards, p=1.0)[3][1] == labels[3]
    assert "so in 2 of 40 images: the base's label counts" in caplog.text


def test_labels_that_are_no_classes_are_left_alone(base: ArrayDataset, shards: Path) -> None:
    several = [torch.tensor([i % 2, i % 3]) for i in range(N)]
    assert torch.equal(CounterfactualDataset(Pictures(base, several), shards, p=1.0)[5][1], several[5])


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


def test_a_base_that_is_reordered_afterwards_is_refused(tmp_path: Path, base: ArrayDataset) -> None:
    part = Subset(base, list(range(N)))
    mixed = CounterfactualDataset(part, write(tmp_path / "shards", base), p=1.0)
    first = mixed[0]
    assert first[1] == base[0][1]
    part.indices.reverse()
    with pytest.raises(DataError, match="it was reordered since: wrap it again"):
        mixed[0]
    part.indices.reverse()
    assert np.array_equal(np.asarray(mixed[0][0]), np.asarray(first[0]))


def test_a_wrapped_base_is_not_wrapped_again(base: ArrayDataset, shards: Path) -> None:
    wrapped = CounterfactualDataset(base, shards)
    for again in (wrapped, Subset(wrapped, [0, 1]), ConcatDataset([wrapped, wrapped])):
        with pytest.raises(UsageError, match="wrapped already"):
            CounterfactualDataset(again, shards)


class Around(Dataset[Any]):
    """What people write to transform the images of any data set."""

    def __init__(self, inner: Any, f: Any = None) -> None:
        self.inner, self.f = inner, f

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        image, label = self.inner[i]
        return (image if self.f is None else self.f(image)), label


class Ordered(Pictures):
    """Draws something every epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_what_is_below_a_class_of_ones_own_is_seen(tmp_path: Path, base: ArrayDataset, shards: Path) -> None:
    from cfaug.learn import RandomCounterfactual

    wrapped = CounterfactualDataset(base, shards)
    for again in (Around(wrapped), Around(Subset(wrapped, [0, 1])), Subset(Around(Around(wrapped)), [0])):
        with pytest.raises(UsageError, match="wrapped already"):
            CounterfactualDataset(again, shards)
    (tmp_path / "class").mkdir()
    base[0][0].save(tmp_path / "class" / "0.png")
    swapping = ImageFolder(str(tmp_path), v2.Compose([RandomCounterfactual(shards)]))
    with pytest.raises(UsageError, match="images would be swapped twice"):
        CounterfactualDataset(Around(swapping), shards)
    ordered = Ordered(base)
    for epoch, outer in enumerate((Around(ordered), Subset(Around(ordered), [1]), ConcatDataset([Around(ordered)])), 1):
        CounterfactualDataset(outer, shards).set_epoch(epoch)
        assert ordered.epoch == epoch


def test_an_empty_base_is_one_line(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(DataError, match="came an empty data set"):
        CounterfactualDataset(Subset(base, []), shards)
    with pytest.raises(UsageError, match="key: expected a function"):
        CounterfactualDataset(base, shards, key=["a"])  # type: ignore[arg-type]


def test_a_validation_split_is_not_augmented(shards: Path) -> None:
    with pytest.raises(UsageError, match="expected the train split, came split 'val'"):
        CounterfactualDataset(source("val"), shards)

    class Torchvisions(Pictures):
        train = False

    with pytest.raises(UsageError, match="came split 'test'"):
        CounterfactualDataset(Torchvisions(source()), shards)


def test_a_test_split_can_be_looked_at_on_purpose(make: Callable[..., Path]) -> None:
    data = source("test")
    assert CounterfactualDataset(data, make(data), guard=False).provenance(0).kind in ("real", "counterfactual")
    assert len(open_training_shards(make(data), guard=False)) == 3 * N


def test_a_held_out_image_among_the_sources_is_named(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(DataError, match=r"sample 'train-000000-\d', whose source is image 0 of held_out\[1\]"):
        CounterfactualDataset(base, shards, held_out=[source(seed=5), Pictures(base_of(base, [0, 7]))])
    changed = base_of(base, [7])
    changed.images = changed.images.copy()
    changed.images[0, 0, 0, 0] ^= 1  # the same grid of places cannot tell small images from themselves
    CounterfactualDataset(base, shards, held_out=[Pictures(changed)])


def test_held_out_images_with_a_reconstruction_alone_and_where_splits_are_not_asked_for(
    base: ArrayDataset, make: Callable[..., Path]
) -> None:
    nulls = make(base, kinds=("null",))
    for guard in (True, False):
        with pytest.raises(DataError, match=r"sample 'train-00000.-0', whose source is image 0 of held_out\[0\]"):
            open_training_shards(nulls, guard, held_out=[Pictures(base)])


def test_what_is_looked_at_is_spread_over_all() -> None:
    for count in (0, 1, 5, 16, 17, 18, 31, 40, 257, 1000, 2**40):
        looked = spread(count, 16)
        assert looked == sorted(set(looked)) == spread(count, 16)
        assert len(looked) == min(count, 16)
        if count:
            assert (looked[0], looked[-1]) == (0, count - 1)
    for step in (2, 3, 4, 8):  # interleaved data has no step in common with it
        counts = np.bincount(np.array(spread(512, 256)) % step, minlength=step)
        assert (counts > 200 / step).all()
    assert np.diff(np.histogram(spread(10_000, 256), 4)[0]).max() < 40


def test_every_second_label_is_another(tmp_path: Path, base: ArrayDataset, shards: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cfaug.learn.match.LABELS_CHECKED", N // 2)
    assert N // 2 < LABELS_CHECKED
    for odd in (0, 1):
        labels = [(i // 2 + (i % 2 == odd)) % 2 for i in range(N)]
        named = source()
        named.table["digit"] = [str(i // 2 % 2) for i in range(N)]
        with pytest.raises(DataError, match=r"expected one \w+ .* \((8|9|10|11|12) of 20 images disagree"):
            CounterfactualDataset(Pictures(base, labels), write(tmp_path / str(odd), named))


def base_of(data: ArrayDataset, rows: list[int]) -> ArrayDataset:
    return ArrayDataset(data.images[rows], data.table.iloc[rows], data.schema)


def test_nothing_held_out_is_none_as_well(base: ArrayDataset, shards: Path) -> None:
    for nothing in (None, (), []):
        assert len(open_training_shards(shards, held_out=nothing)) == 3 * N
        assert len(CounterfactualDataset(base, shards, held_out=nothing)) == N  # type: ignore[arg-type]


def test_a_stack_is_matched_by_the_keys_of_its_images(base: ArrayDataset, shards: Path) -> None:
    stack = StackDataset(base, Pictures(base, ["note"] * N).labels)
    mixed = CounterfactualDataset(stack, shards, p=1.0)
    assert mixed.matches.table == "by_key"
    (image, label), note = mixed[3]
    assert (label, note, np.asarray(image).max()) == (1, "note", 1 + 10 * (mixed.provenance(3).row % 3))
    with pytest.raises(UsageError, match="came split 'val'"):
        CounterfactualDataset(StackDataset(source("val"), ["note"] * N), shards)


def test_a_shard_that_goes_away_is_one_line(tmp_path: Path) -> None:
    data = source(transform=v2.PILToTensor())
    mixed = CounterfactualDataset(data, write(tmp_path / "shards", data), p=1.0)
    (tmp_path / "shards" / "cf-train-000000.tar").unlink()
    expected = mixed[0]  # this process has the shard open: it goes on with the bytes it knows
    elsewhere = pickle.loads(pickle.dumps(mixed))  # a worker that is spawned has not
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'train-00000.-.'") as told:
        elsewhere[0]
    assert "\n" not in str(told.value)
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar"):
        list(DataLoader(elsewhere, 8, num_workers=1))
    assert torch.equal(mixed[0][0], expected[0])


def test_streams_have_no_index(shards: Path) -> None:
    with pytest.raises(UsageError, match="iterables have no index"):
        CounterfactualDataset((image for image in ()), shards)
