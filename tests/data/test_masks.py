"""Masks of a folder: a column of metadata.csv or a directory; fitted as their images are, and refused when they cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfaug.data import FolderDataset, open_source
from cfaug.errors import CfaugError

SIZES = {"a.png": (20, 12), "b.png": (12, 20)}


def masked(root: Path) -> Path:
    """Two images of different sizes, each with a mask: its left half."""
    (root / "masks").mkdir(parents=True)
    rows = ["file_name,split,y,a,mask"]
    for i, (name, (width, height)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(root / "masks" / name)
        rows.append(f"{name},train,{i},{i},masks/{name}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return root


def opened(root: Path, **more: object) -> FolderDataset:
    data = open_source("folder", root, target="y", spurious=["a"], **more)  # type: ignore[arg-type]
    assert isinstance(data, FolderDataset)
    return data


@pytest.mark.parametrize("named", ["mask", "masks"])
def test_a_mask_is_brought_to_the_images_size(tmp_path: Path, named: str) -> None:
    data = opened(masked(tmp_path / "d"), size=10, masks=named)
    for i in range(2):
        mask = data.mask(i)
        assert mask is not None
        assert mask.shape == data.image(i).shape[:2] == (10, 10)
        assert mask[:, :4].min() > 250
        assert mask[:, 6:].max() < 5
    data.check_images()


def test_without_a_name_there_are_no_masks(tmp_path: Path) -> None:
    assert opened(masked(tmp_path / "d"), size=10).mask(0) is None


def written(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        masked(root)
        change(root)
        return root

    return make


def plain(value: int, size: tuple[int, int] = (20, 12)) -> Callable[[Path], object]:
    return lambda root: Image.new("L", size, value).save(root / "masks" / "a.png")


def cells(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / "metadata.csv").write_text((root / "metadata.csv").read_text().replace(old, new))


MESSAGES = {
    "another size": (plain(0, (4, 4)), "mask", "mask of 20x12 px"),
    "empty": (plain(0), "mask", "got nothing marked"),
    "full": (plain(255), "mask", "got everything marked"),
    "missing for some": (cells("masks/a.png", ""), "mask", "a mask for every image"),
    "missing in the directory": (lambda root: (root / "masks" / "b.png").unlink(), "masks", "a mask for every image"),
    "no such file": (lambda root: (root / "masks" / "b.png").unlink(), "mask", "no such file"),
    "damaged": (lambda root: (root / "masks" / "b.png").write_bytes(b"x"), "mask", "cannot decode"),
    "no such column": (lambda root: None, "maske", "did you mean mask"),
    "outside": (cells("masks/a.png", "../a.png"), "mask", "leads out of it"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_mask_is_one_line(tmp_path: Path, name: str) -> None:
    change, named, fragment = MESSAGES[name]
    with pytest.raises(CfaugError) as error:
        opened(written(change)(tmp_path / "d"), size=10, masks=named).check_images()
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)
