"""Recognising images: arrays and PIL images agree, every pixel counts, and padding bytes do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfaug.data import pixel_hashes as lookup
from cfaug.data.images import to_pil
from cfaug.data.pixel_hashes import has_pixels, pixels_hash, sample_hash
from cfaug.errors import UsageError

sides = st.integers(1, 150)


def image(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@given(sides, sides, st.sampled_from([1, 3]), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_arrays_and_pil_images_agree_and_grey_is_r_g_b(height: int, width: int, channels: int, seed: int) -> None:
    pixels = image(height, width, channels, seed)
    picture = to_pil(pixels)
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
    transposed = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)  # what a tensor CHW looks like
    for other in (picture, picture.convert("RGB"), rgb, transposed):
        assert sample_hash(other) == sample_hash(pixels)
        assert pixels_hash(other) == pixels_hash(pixels)
        assert has_pixels(other, pixels_hash(pixels))


@given(sides, sides, st.integers(0, 9), st.data())
@settings(deadline=None, max_examples=40)
def test_one_pixel_more_or_less_is_another_image(height: int, width: int, seed: int, data: st.DataObject) -> None:
    pixels = image(height, width, 3, seed)
    changed = pixels.copy()
    changed[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1)), 1] ^= 1
    assert pixels_hash(changed) != pixels_hash(pixels)
    assert not has_pixels(to_pil(changed), pixels_hash(pixels))
    if height <= 16 and width <= 16:
        assert sample_hash(changed) != sample_hash(pixels)


def test_a_size_is_part_of_the_identity() -> None:
    flat = np.zeros((6, 4, 3), np.uint8)
    for other in (flat.reshape(4, 6, 3), flat.reshape(8, 3, 3)):
        assert sample_hash(other) != sample_hash(flat)
        assert pixels_hash(other) != pixels_hash(flat)


def test_what_pillow_leaves_in_the_fourth_byte_does_not_matter() -> None:
    resized = to_pil(image(60, 80, 3, 0)).resize((40, 30))  # its padding bytes are no longer 255
    assert has_pixels(resized, pixels_hash(np.asarray(resized)))
    assert pixels_hash(resized) == pixels_hash(np.asarray(resized))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "CMYK", "LA"])
def test_other_modes_count_as_the_rgb_they_convert_to(mode: str) -> None:
    picture = to_pil(image(20, 33, 3, 0)).convert(mode)
    if mode.endswith("A"):
        picture.putalpha(99)
    assert sample_hash(picture) == sample_hash(np.asarray(picture.convert("RGB")))
    assert has_pixels(picture, pixels_hash(picture.convert("RGB")))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_anything_but_eight_bits_is_refused(wrong: np.ndarray) -> None:
    for of in (sample_hash, pixels_hash):
        with pytest.raises(UsageError, match="uint8"):
            of(wrong)


def test_both_ways_through_pillow_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [to_pil(image(h, w, c, 0)) for h in (1, 7, 16, 100) for w in (3, 16, 333) for c in (1, 3)]
    short = [sample_hash(picture) for picture in pictures]
    assert lookup._grid(pictures[1]) is not None  # the Pillow that is installed still has what it uses
    monkeypatch.setattr(lookup, "_grid", lambda picture: None)
    assert [sample_hash(picture) for picture in pictures] == short


class _Backwards:
    """An encoder of Pillow's that gives another order to who asks for just the bytes of a grid; tobytes asks for more."""

    def __init__(self, encoder: Any) -> None:
        self.setimage, self.cleanup, self._encode = encoder.setimage, encoder.cleanup, encoder.encode

    def encode(self, size: int) -> tuple[int, int, bytes]:
        used, code, content = self._encode(size)
        return used, code, content[::-1] if size == lookup.GRID**2 * 3 else content


def test_pillow_internals_that_give_other_bytes_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = to_pil(image(50, 70, 3, 0))
    expected, short = sample_hash(picture), Image._getencoder  # type: ignore[attr-defined]
    monkeypatch.setattr(Image, "_getencoder", lambda *rest: _Backwards(short(*rest)))
    lookup._short_way_holds.cache_clear()
    try:
        assert sample_hash(picture) == expected == sample_hash(np.asarray(picture))
    finally:
        monkeypatch.undo()
        lookup._short_way_holds.cache_clear()
