"""PNGs without filter and compression: what every reader gets back, and what stands in the file."""

from __future__ import annotations

import io
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cfaug.offline.stored_png import BLOCK, stored_png

SIZES = st.integers(1, 40)


def noise(height: int, width: int, grey: bool, seed: int) -> np.ndarray:
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(SIZES, SIZES, st.booleans(), st.integers(0, 9))
@example(1, 1, True, 0)
@example(BLOCK // 5, 4, True, 0)  # rows of five bytes: exactly one full block
@example(BLOCK // 5 + 1, 4, True, 0)
@example(300, 311, False, 0)  # five blocks
def test_pillow_gets_the_pixels_back(height: int, width: int, grey: bool, seed: int) -> None:
    pixels = noise(height, width, grey, seed)
    with Image.open(io.BytesIO(stored_png(pixels)), formats=["PNG"]) as image:
        image.load()
        assert image.mode == ("L" if grey else "RGB")
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("grey", [False, True])
def test_libpng_gets_the_pixels_back(grey: bool) -> None:
    from torchvision.io import decode_png

    pixels = noise(150, 160, grey, 0)
    data = np.frombuffer(stored_png(pixels), np.uint8)
    read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read if grey else read[..., ::-1], pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = decode_png(torch.from_numpy(data.copy()))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy().reshape(pixels.shape), pixels)


def test_the_bytes_are_the_pixels() -> None:
    """Signature, header, one IDAT of a zlib stream of rows without a filter, end; checksums right."""
    pixels = noise(2, 3, False, 0)
    data = stored_png(pixels)
    at, chunks = 8, {}
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        assert zlib.crc32(body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        chunks[body[:4]] = body[4:]
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert zlib.decompress(chunks[b"IDAT"]) == b"".join(b"\0" + row.tobytes() for row in pixels)
    assert pixels.tobytes()[:9] in data  # no compression: as they are
