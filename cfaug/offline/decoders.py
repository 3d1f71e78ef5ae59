"""What a member of a shard can be, and nothing else: the closed table of fields, each with its decoder and its bounds.

    json   one flat ASCII object with the fields of format 1                      at most 1 MiB
    png    8 bits, grey or RGB; chunks IHDR, IDAT, IEND and no other              at most 64 MiB, 2^24 pixels
    webp   simple lossless (VP8L), RGB without alpha                              the same

Beside that, both may have the mark of a generated image (:mod:`cfaug.offline.marks`), which is taken out first.

The name in the tar chooses the decoder, never the content: nothing is unpickled, no command runs, and Pillow is never asked
to guess (it would pass an EPS called .png on to Ghostscript). Dimensions are read from the first bytes before Pillow sees
any: a few kilobytes can announce gigabytes. Text, colour profiles and animation are refused before a decompressor sees them.

References: PNG, W3C 2025 (https://www.w3.org/TR/png-3/); WebP container and lossless bitstream, RFC 9649.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.errors import ShardError, one_line
from cfaug.offline.format import (
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    MAX_RECORD_BYTES,
    Record,
    check_record,
    parse_object,
)
from cfaug.offline.marks import unmarked

Pixels = npt.NDArray[np.uint8]
FIELDS: Mapping[str, int] = MappingProxyType(
    {"json": MAX_RECORD_BYTES, "png": MAX_IMAGE_BYTES, "webp": MAX_IMAGE_BYTES}
)
"""What a member can be -> the most bytes that are accepted of it."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_MODES = {0: "L", 2: "RGB"}  # colour type -> Pillow's mode at 8 bits
PNG_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
_CHUNK, _IHDR = struct.Struct(">I4s"), struct.Struct(">IIBB")


def parse_record(data: bytes, where: str) -> Record:
    """The record in `data`, with the fields and types of format 1 or :class:`ShardError` naming `where`."""
    return check_record(parse_object(data, MAX_RECORD_BYTES, f"{where}: its record"), where)


def decode_image(data: bytes, where: str, field: str = "png", vouched: bool = True) -> Pixels:
    """The pixels of a ``png`` or ``webp``: uint8, height x width x (1 or 3), or :class:`ShardError` naming `where`.

    `vouched`: a sha256 of `data` was checked already; without it a PNG's own checksums are.
    """
    return pixels_of(picture_of(data, lambda: where, field, vouched))


def pixels_of(picture: Image.Image) -> Pixels:
    """uint8, height x width x (1 or 3), writable."""
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def picture_of(data: bytes, where: Callable[[], str], field: str = "png", vouched: bool = True) -> Image.Image:
    """The decoded picture, mode L or RGB; :class:`ShardError` naming ``where()``, which is asked only then."""
    kind, data = field.upper(), unmarked(data, field)
    try:
        mode, size = {"png": _png_header, "webp": _webp_header}[field](data, vouched)
    except (ValueError, struct.error) as error:
        raise _refused(kind, error, where()) from None
    if len(data) > MAX_IMAGE_BYTES or not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ShardError(
            f"{where()}: expected an image of 1 to {MAX_PIXELS} pixels, got {size[0]}x{size[1]} in {len(data)} bytes: "
            "generate this shard again"
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=[kind])
        if picture.mode != mode or picture.size != size:
            raise ValueError(f"expected {mode} {size[0]}x{size[1]}, got {picture.mode} {picture.size}")
        picture.load()
    except Exception as error:  # the decoders' own failures are of many kinds; ours is one
        raise _refused(kind, error, where()) from None
    return picture


def _png_header(data: bytes, vouched: bool) -> tuple[str, tuple[int, int]]:
    """Mode, and (width, height); ValueError says what is not as our format has it, from the first byte to the last."""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError(f"it begins with {data[:8]!r}")
    at, before = 8, b""
    while at < len(data):
        length, name = _CHUNK.unpack_from(data, at)
        if name not in PNG_CHUNKS or (name == b"IHDR") != (before == b"") or before == b"IEND":
            raise ValueError(f"chunk {name!r} after {before!r}: only IHDR, IDAT, IEND, in this order, are decoded")
        end = at + 12 + length
        if end > len(data):
            raise ValueError(f"its chunk {name!r} is cut off")
        if not vouched and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"its chunk {name!r} does not have the checksum it states")
        at, before = end, name
    if before != b"IEND":
        raise ValueError("it is cut off")
    width, height, bits, colour = _IHDR.unpack_from(data, 16)
    if bits != 8 or colour not in PNG_MODES:
        raise ValueError(f"{bits} bits of colour type {colour}: only 8 bits, grey or RGB, are decoded")
    return PNG_MODES[colour], (width, height)


def _webp_header(data: bytes, vouched: bool) -> tuple[str, tuple[int, int]]:
    """Mode, and (width, height), of a simple lossless WebP that fills `data` exactly; ValueError says what else it is."""
    riff, whole, webp, kind, length, signature = struct.unpack_from("<4sI4s4sIB", data)
    if (riff, webp, kind, signature) != (b"RIFF", b"WEBP", b"VP8L", 0x2F):
        raise ValueError(f"only simple lossless WebP is decoded, it begins with {data[:16]!r}")
    if whole + 8 != len(data) or 20 + length + length % 2 != len(data):
        raise ValueError("it is cut off, or has something behind its end")
    (bits,) = struct.unpack_from("<I", data, 21)  # 14 bits width - 1, 14 bits height - 1, alpha, 3 bits version
    if bits >> 28:
        raise ValueError("it has an alpha channel or a different version: only RGB is decoded")
    return "RGB", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)


def _refused(kind: str, error: Exception, where: str) -> ShardError:
    reason = one_line(error, 200)
    return ShardError(f"{where}: its image is not a readable {kind} ({reason}); generate this shard again")
