"""A writer of PNGs that are neither filtered nor compressed. The files are larger, and every PNG reader opens them much faster.

Undoing PNG's filters takes a reader as long as inflating the data, and Pillow, OpenCV and torchvision filter every RGB row at
any compression level. This module therefore writes the file itself (PNG specification, W3C 2003, 5.3, 9 and 11; DEFLATE
stored blocks, RFC 1951, 3.2.4), so its bytes do not depend on the version of a library.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # colour types
BLOCK = 65535  # the most bytes that a stored block can hold


def stored_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of uint8 ``pixels``, (H, W) grey or (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    rows = np.zeros(
        (height, 1 + pixels[0].size), dtype=np.uint8
    )  # a row begins with the number of its filter, here 0 (none)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if pixels.ndim == 2 else RGB, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", _stored(rows.tobytes())), _chunk(b"IEND", b""))
    return SIGNATURE + b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))))


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), BLOCK):
        part = data[start : start + BLOCK]
        last = start + BLOCK >= len(data)
        parts += struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF), part
    return b"".join((*parts, struct.pack(">I", zlib.adler32(data))))
