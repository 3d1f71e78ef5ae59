"""One picture, one rule: what is recognised, and what stands at an image's place, is the same by every way in."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors

from cfaug.data import ArrayDataset
from cfaug.data.images import to_pil
from cfaug.errors import CfaugError, DataError
from cfaug.learn import CounterfactualDataset, MixingCollate, RandomCounterfactual, open_training_shards
from cfaug.learn.image_types import in_mode, like, recognisable

TURNED = 6  # EXIF orientation: a quarter


def with_alpha(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    alpha = np.arange(image.shape[0] * image.shape[1], dtype=np.uint8).reshape(*image.shape[:2], 1)
    return np.concatenate([image, alpha], axis=2)


def turned(image: np.ndarray[Any, Any]) -> Image.Image:
    picture, exif = to_pil(image), Image.Exif()
    exif[0x0112] = TURNED
    picture.info["exif"] = exif.tobytes()
    return picture


def through_file(image: np.ndarray[Any, Any]) -> Image.Image:
    """As a file of another program's: alpha, EXIF, and nothing decoded yet."""
    exif = Image.Exif()
    exif[0x0112] = TURNED
    file = io.BytesIO()
    Image.fromarray(with_alpha(image)).save(file, "PNG", exif=exif.tobytes(), icc_profile=b"profile")
    return Image.open(io.BytesIO(file.getvalue()))


def chw(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


KINDS: dict[str, Callable[[Any], Any]] = {
    "L": lambda a: to_pil(a[..., :1]),
    "RGB": to_pil,
    "RGBA": lambda a: Image.fromarray(with_alpha(a)),
    "P": lambda a: Image.fromarray(a).quantize(256),
    "1": lambda a: to_pil(a[..., :1]).convert("1"),
    "LA": lambda a: Image.merge("LA", (to_pil(a[..., :1]), to_pil(with_alpha(a)[..., 3:]))),
    "CMYK": lambda a: Image.fromarray(a).convert("CMYK"),
    "EXIF": turned,
    "a file": through_file,
    "tensor": chw,
    "grey tensor": lambda a: chw(a[..., :1]),
    "RGBA tensor": lambda a: chw(with_alpha(a)),
    "tv_tensor": lambda a: tv_tensors.Image(chw(a)),
    "array": lambda a: a.copy(),
    "grey array": lambda a: a[..., 0].copy(),
    "grey array of three axes": lambda a: a[..., :1].copy(),
    "RGBA array": with_alpha,
}


class Made(Dataset[Any]):
    """Items made anew from arrays; `key` is not known, so images are matched by their pixels."""

    def __init__(self, images: Any, make: Callable[[Any], Any]) -> None:
        self.arrays, self.make = images, make

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.make(self.arrays[i]), i % 2


def shards_of(folder: Path, made: Made) -> Path:
    """One counterfactual for each image, of a source that has just the pixels that `recognisable` sees."""
    data = source()
    seen = [recognisable(made[i][0]) for i in range(N)]
    pixels = np.stack([np.asarray(Image.fromarray(x) if isinstance(x, np.ndarray) and x.shape[2] == 3 else x) for x in seen])  # type: ignore[arg-type]  # fmt: skip
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return write(folder, ArrayDataset(pixels, data.table, data.schema, "train"), kinds=("cf",))


def facts(image: Any) -> tuple[Any, ...]:
    """Everything a later step can see of an image."""
    if isinstance(image, Image.Image):
        return image.mode, image.size, image.convert("RGBA").tobytes(), image.getexif().get(0x0112), image.info.get("icc_profile")  # fmt: skip
    array = np.asarray(image)
    return type(image), array.shape, array.dtype, array.tobytes()


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_way_in_shows_the_same(tmp_path: Path, kind: str) -> None:
    base = Made(source().images, KINDS[kind])
    shards = shards_of(tmp_path, base)
    wrapped, swap = CounterfactualDataset(base, shards, p=1.0), RandomCounterfactual(shards, p=1.0)
    for i in (0, 1, 17):
        made = swap(base[i][0])
        assert facts(wrapped[i][0]) == facts(made)
        assert facts(made) != facts(base[i][0])
        assert facts(made)[:2] == facts(base[i][0])[:2]
    assert swap.swapped == 3
    real = base[0][0]
    with pytest.raises(DataError, match="held-out image"):
        open_training_shards(shards, held_out=[base])
    seen = MixingCollate(shards, p=1.0, transform=lambda image: torch.from_numpy(np.asarray(image).copy()))
    (batch,) = seen([(real, 0)])[:1]
    assert torch.equal(batch[0], torch.from_numpy(np.asarray(swap(real)).copy()))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "a file", "RGBA tensor", "RGBA array"])
def test_alpha_is_the_images_own(kind: str) -> None:
    image = KINDS[kind](source().images[0])
    made = like(Image.new("RGB", (8, 8), (1, 1, 1)), image, lambda: "there")
    alpha = [np.asarray(x)[..., -1] if not isinstance(x, torch.Tensor) else x[-1].numpy() for x in (image, made)]
    assert np.array_equal(*alpha)
    assert len(np.unique(alpha[1])) == 64


def test_a_later_step_turns_both_alike(tmp_path: Path) -> None:
    image = turned(source().images[0])
    left = Image.new("RGB", (8, 8))
    left.paste((200, 0, 0), (0, 0, 4, 8))
    made = like(left, image, lambda: "there")
    assert np.array_equal(ImageOps.exif_transpose(made), np.rot90(np.asarray(left), -1))


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "YCbCr", "HSV", "PA"]),
    height=st.integers(1, 9), width=st.integers(1, 9), grey=st.booleans(),
)  # fmt: skip
def test_type_mode_and_size_stay(mode: str, height: int, width: int, grey: bool) -> None:
    picture = Image.new("L" if grey else "RGB", (width, height), 40 if grey else (40, 40, 40))
    made = like(picture, Image.new(mode, (width, height)), lambda: "there")
    assert (made.mode, made.size) == (mode, (width, height))
    if mode not in ("1", "P", "PA"):
        assert set(np.unique(made.convert("RGB"))) == {40}
    assert in_mode(picture, mode).mode == mode


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_no_source_can_be_of_16_bits(shards: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8))
    assert recognisable(image) is None
    assert recognisable(np.zeros((8, 8, 2), np.uint8)) is None
    assert recognisable(np.zeros((0, 8, 3), np.uint8)) is None
    deep = Made(source().images, lambda a: Image.new(mode, (8, 8)))
    open_training_shards(shards, held_out=[deep])  # none of them can be a source
    with pytest.raises(CfaugError, match="got none for 40 of 40"):
        CounterfactualDataset(deep, shards)


def test_black_and_white_is_a_threshold() -> None:
    for grey, white in ((100, 0), (200, 255)):
        made = in_mode(Image.new("L", (8, 8), grey), "1")
        assert (made.mode, set(made.convert("L").tobytes())) == ("1", {white})


def test_a_palette_is_fitted_to_the_picture() -> None:
    picture = Image.fromarray(source().images[0])
    made = like(picture, Image.new("P", (8, 8)), lambda: "there").convert("RGB")
    assert np.abs(np.asarray(made).astype(int) - np.asarray(picture)).mean() < 4
