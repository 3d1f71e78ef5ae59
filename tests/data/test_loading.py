"""Images as one array: of one size, or of several on one canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cfaug.data import FolderDataset, load_images, load_padded
from cfaug.data.loading import SIDES, pad_to
from cfaug.errors import DataError

SIZES = [(9, 12), (14, 8), (10, 10), (5, 13)]  # height, width


def folder(root: Path, sizes: list[tuple[int, int]] = SIZES, modes: tuple[str, ...] = ("RGB",)) -> FolderDataset:
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        shape = (height, width, 3) if modes[i % len(modes)] == "RGB" else (height, width)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{i}.png")
    table = pd.DataFrame({"file_name": [f"{i}.png" for i in range(len(sizes))], "split": "train"})
    table.assign(kind=["a", "b"] * (len(sizes) // 2) + ["a"] * (len(sizes) % 2)).to_csv(
        root / "metadata.csv", index=False
    )
    return FolderDataset(root, "train", target="kind")


def line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_image_lies_at_the_top_left_and_its_edge_is_repeated(tmp_path: Path) -> None:
    data = folder(tmp_path)
    images, sizes = load_padded(data, progress=False)
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 14, 13)  # the largest height by the largest width, of different images
    assert sizes.tolist() == [list(size) for size in SIZES]
    for i, (height, width) in enumerate(SIZES):
        image = torch.from_numpy(data.image(i)).permute(2, 0, 1)
        assert torch.equal(images[i, :, :height, :width], image)
        assert (images[i, :, height:, :width] == image[:, -1:, :]).all()
        assert (images[i, :, :height, width:] == image[:, :, -1:]).all()
        assert (images[i, :, height:, width:] == image[:, -1:, -1:]).all()


def test_the_canvas_is_rounded_up_to_a_multiple_and_rows_can_be_chosen(tmp_path: Path) -> None:
    images, sizes = load_padded(folder(tmp_path), [2, 0], multiple=8, progress=False)
    assert images.shape == (2, 3, 16, 16)
    assert sizes.tolist() == [[10, 10], [9, 12]]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_of_one_size_are_the_same_either_way(tmp_path: Path, mode: str) -> None:
    data = folder(tmp_path, [(6, 7)] * 3, modes=(mode,))
    images, sizes = load_padded(data, progress=False)
    assert torch.equal(images, load_images(data, progress=False))
    assert images.shape[1] == (3 if mode == "RGB" else 1)
    assert sizes.tolist() == [[6, 7]] * 3


def test_load_images_stays_strict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"12x9 with 3 channels like 0.png, got 8x14 with 3 of 1.png") as error:
        load_images(folder(tmp_path), progress=False)
    line(error)


@pytest.mark.parametrize("size", [(3, 20), (20, 3), (SIDES[1] + 1, 20), (20, SIDES[1] + 1)])
def test_an_image_of_the_wrong_size_is_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"1\.png: expected sides of 4 to 256 px, got") as error:
        load_padded(folder(tmp_path, [(8, 8), size]), progress=False)
    assert f"{size[1]}x{size[0]}; resize" in line(error)


def test_the_sizes_that_are_promised_are_taken(tmp_path: Path) -> None:
    images, _ = load_padded(folder(tmp_path, [(28, 256), (256, 28)]), progress=False)
    assert images.shape == (2, 3, 256, 256)


def test_grey_among_rgb_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png: expected 3 channels like 0\.png, got 1") as error:
        load_padded(folder(tmp_path, modes=("RGB", "L")), progress=False)
    line(error)


def test_no_image_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one image in split 'train'"):
        load_padded(folder(tmp_path), [], progress=False)


def test_padding_to_ones_own_size_is_nothing() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pad_to(image, (2, 4)) is image
    assert pad_to(image, (3, 5)).shape == (3, 5, 3)
