"""Shards that were made at a working size, and a base that reads the original files: found by the original pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cfaug import CounterfactualDataset, RandomCounterfactual
from cfaug.data import FolderDataset, pixel_digest
from cfaug.data.images import read_image
from cfaug.offline import ShardReader, balance_groups, generate, verify

N = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs of many sizes, with the attributes of tiny.dataset."""
    place = tmp_path_factory.mktemp("photographs")
    source = tiny.dataset(N)
    rows = ["file_name,split,digit,colour,ground,thickness"]
    for i, (_, row) in enumerate(source.table.iterrows()):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 41 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,train,{row.digit},{row.colour},{row.ground},{row.thickness}")
    (place / "metadata.csv").write_text("\n".join(rows))
    return place


def opened(root: Path, size: int | None = 12) -> FolderDataset:
    return FolderDataset(root, schema=tiny.schema(), size=size)


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = opened(root)
    plan = balance_groups(data.table, data.schema, null_fraction=0.5, samples_per_shard=20)
    out = tmp_path_factory.mktemp("run")
    generate(tiny.TinyModel(data.schema), data, plan, out, workers=0, batch_size=8)
    assert verify(out, plan).ok
    return out


def test_the_record_has_both_digests(root: Path, shards: Path) -> None:
    reader, data = ShardReader(shards), opened(root)
    assert reader.resized
    assert reader.manifest[0].environment["size"] == "12x12 crop"
    for i in (0, 7):
        record = reader.record(i)
        at = [data.key(k) for k in range(len(data))].index(record["source_key"])
        assert record["source_digest"] == pixel_digest(read_image(root / record["source_key"]))
        assert record["working_digest"] == pixel_digest(data.image(at))
        assert reader.image(i).shape == (12, 12, 3)


class Originals(Dataset[tuple[Image.Image, int]]):
    """What a user has: the files as they are, without keys, and a resize in the transform."""

    def __init__(self, root: Path, transform: object = None) -> None:
        self.paths, self.transform = sorted(root.glob("*.png")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        picture = Image.open(self.paths[i]).convert("RGB")
        return (picture if self.transform is None else self.transform(picture)), i % 3  # type: ignore[operator]


def test_a_base_of_originals_is_found_and_shows_the_working_size(root: Path, shards: Path) -> None:
    mixed = CounterfactualDataset(Originals(root), shards, p=1.0)
    sizes = {mixed[i][0].size for i in range(N)}
    assert sizes == {(12, 12)}
    resized = CounterfactualDataset(Originals(root, v2.Resize((16, 16))), shards, p=0.5, seed=1)
    assert {resized[i][0].size for i in range(N)} == {(16, 16)}
    assert not any("resized" in str(mixed[i][0].info) for i in range(N))


def test_the_transform_finds_originals_too(root: Path, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=1.0)
    for i in range(N):
        assert swap(Originals(root)[i][0]).size == (12, 12)
    assert swap.swapped == N


def test_the_data_set_of_the_working_size_is_found_by_its_keys(root: Path, shards: Path) -> None:
    mixed = CounterfactualDataset(opened(root), shards, p=1.0)
    assert {mixed[i][0].size for i in range(N)} == {(12, 12)}


def test_other_images_of_those_names_are_refused(root: Path, shards: Path, tmp_path: Path) -> None:
    from cfaug.errors import DataError

    for path in root.glob("*.png"):
        Image.fromarray(255 - read_image(path)).save(tmp_path / path.name)
    (tmp_path / "metadata.csv").write_text((root / "metadata.csv").read_text())
    with pytest.raises(DataError, match="expected image"):
        CounterfactualDataset(opened(tmp_path), shards, p=1.0)
