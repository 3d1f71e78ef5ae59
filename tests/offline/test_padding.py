"""Sources of different sizes: padded to the model's canvas, cropped back, and the record says by how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny

from cfaug.data import ArrayDataset, pixel_digest
from cfaug.data.images import Pixels
from cfaug.errors import DataError
from cfaug.offline import Plan, ShardReader, balance_groups, generate, verify

SIZES = [(8, 8), (6, 9), (10, 5), (7, 7), (10, 9)]  # height, width
CANVAS = (10, 9)


class Uneven(ArrayDataset):
    """The tiny data set with every image cut to a size of its own."""

    def image(self, i: int, /) -> Pixels:
        height, width = SIZES[i % len(SIZES)]
        return np.ascontiguousarray(super().image(i)[:height, :width])


@dataclass(frozen=True)
class Framed(tiny.TinyModel):
    """The tiny model on a canvas: insists on getting it."""

    canvas: tuple[int, int] | None = CANVAS

    def abduct(self, images: torch.Tensor, attributes: Any, seed: Any, **more: Any) -> Any:
        assert self.canvas is None or tuple(images.shape[2:]) == self.canvas
        for image, (height, width) in zip(images, self.sizes(more["keys"])):
            assert (image[:, height:, :width] == image[:, height - 1 : height, :width]).all()
            assert (image[:, :, width:] == image[:, :, width - 1 : width]).all()
        return super().abduct(images, attributes, seed, **more)

    def sizes(self, keys: Any) -> list[tuple[int, int]]:
        return []


def uneven(n: int = 24, channels: int = 3) -> Uneven:
    even = tiny.dataset(n, size=10, channels=channels)
    return Uneven(even.images, even.table, even.schema)


def a_plan(n: int = 24) -> Plan:
    return balance_groups(tiny.dataset(n).table, tiny.schema(), null_fraction=0.25, samples_per_shard=8)


def run(out: Path, data: ArrayDataset | None = None, **options: Any) -> None:
    model = options.pop("model", Framed(tiny.schema()))
    settings = {"workers": 0, "batch_size": 5, "progress": False, **options}
    generate(model, uneven() if data is None else data, a_plan(), out, **settings)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("padded")
    run(out)
    return out


def test_images_come_back_at_their_sources_size(reference: Path) -> None:
    reader, data = ShardReader(reference), uneven()
    place = {data.key(i): i for i in range(len(data))}
    seen = set()
    for i in range(len(reader)):
        sample = reader.sample(i)
        source = data.image(place[sample.record["source_key"]])
        assert sample.image.shape == source.shape
        assert sample.record["source_digest"] == pixel_digest(source)
        quality = sample.record["quality"]
        padding = (quality["padding_bottom"], quality["padding_right"])
        assert padding == (CANVAS[0] - source.shape[0], CANVAS[1] - source.shape[1])
        change = np.abs(sample.image.astype(float) - source).mean() / 255
        assert quality["change_l1"] == pytest.approx(change, abs=1e-6)
        if not sample.record["do"]:
            np.testing.assert_array_equal(sample.image, source)
        seen.add(padding)
    assert len(seen) == len(SIZES)
    assert (0, 0) in seen  # in every sample, the largest image's too
    assert verify(reference, a_plan()).ok
    assert {row.environment["canvas"] for row in reader.manifest} == {"10x9"}


@pytest.mark.slow
def test_workers_change_no_byte(reference: Path, tmp_path: Path) -> None:
    run(tmp_path, workers=2)
    assert tiny.digests(tmp_path) == tiny.digests(reference)
    assert tiny.manifest_lines(tmp_path) == tiny.manifest_lines(reference)


def test_the_batch_changes_no_pixel(reference: Path, tmp_path: Path) -> None:
    """With the canvas of each batch instead of the model's, neighbours would decide what the model sees."""
    run(tmp_path, batch_size=3)
    ours, theirs = ShardReader(tmp_path), ShardReader(reference)
    for i in range(len(ours)):
        np.testing.assert_array_equal(ours.image(i), theirs.image(i))
        assert ours.record(i) == theirs.record(i)


def test_the_model_sees_repeated_edges(tmp_path: Path) -> None:
    class Spying(Framed):
        def sizes(self, keys: Any) -> list[tuple[int, int]]:
            place = {key: i for i, key in enumerate(uneven().table.index)}
            return [SIZES[place[key] % len(SIZES)] for key in keys]

    run(tmp_path, model=Spying(tiny.schema()))


def test_without_a_canvas_nothing_changes(tmp_path: Path) -> None:
    """Sources of one size and a model without a canvas: the record of format 1 as it always was."""
    run(tmp_path / "none", tiny.dataset(), model=Framed(tiny.schema(), canvas=None))
    run(tmp_path / "absent", tiny.dataset(), model=tiny.model())
    assert tiny.digests(tmp_path / "none") == tiny.digests(tmp_path / "absent")
    assert set(ShardReader(tmp_path / "none").record(0)["quality"]) == {"change_l1"}
    assert "canvas" not in ShardReader(tmp_path / "none").manifest[0].environment


def test_sources_of_different_sizes_need_a_canvas(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a uint8 image of shape \(\d+, \d+, 3\)") as error:
        run(tmp_path, model=tiny.model())
    assert "\n" not in str(error.value)


def test_a_source_larger_than_the_canvas_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"source 'source \d+\.png': expected at most 9x8 px, .* got \d+x\d+; resize"
    ) as error:
        run(tmp_path, model=Framed(tiny.schema(), canvas=(8, 9)))
    assert "\n" not in str(error.value)


def test_grey_among_colour_is_one_line(tmp_path: Path) -> None:
    class Mixed(Uneven):
        def image(self, i: int, /) -> Pixels:
            return super().image(i)[..., : 1 if i % 3 == 2 else 3]

    even = uneven()
    with pytest.raises(DataError, match=r"expected a uint8 image with [13] channels as .* resize or convert") as error:
        run(tmp_path, Mixed(even.images, even.table, even.schema), batch_size=24)
    assert "\n" not in str(error.value)


def test_hf_datasets_reads_the_padding_by_the_card(reference: Path, tmp_path: Path) -> None:
    import datasets

    rows = list(datasets.load_dataset(str(reference / "shards"), split="train", cache_dir=str(tmp_path / "a")))
    reader = ShardReader(reference)
    expected = {key: reader.record(i)["quality"] for i, key in enumerate(reader.keys)}
    assert {row["json"]["key"]: row["json"]["quality"] for row in rows} == expected
    tars = [str(reference / "shards" / row.name) for row in reader.manifest]
    inferred = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "b"))
    assert {row["json"]["key"]: row["json"]["quality"] for row in inferred} == expected
