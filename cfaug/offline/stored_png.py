"""PNGs that are neither filtered nor compressed: larger files, which any PNG reader reads in a fraction of the time.

Undoing PNG's filters takes as long as inflating it, and Pillow, OpenCV and torchvision filter every RGB row whatever the
compression level; hence these few lines (PNG specification, W3C 2003, 5.3, 9 and 11; DEFLATE stored blocks, RFC 1951, 3.2.4). The
bytes depend on no library's version.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # colour types
BLOCK = 65535  # bytes in a stored block at most


def stored_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of uint8 ``pixels``, (H, W) grey or (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # a row begins with its filter's number: none
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
