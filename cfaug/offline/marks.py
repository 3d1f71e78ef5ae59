"""The mark that every generated image carries in its own file: XMP with IPTC's digital source type, one of a closed list.

    PNG    one chunk iTXt "XML:com.adobe.xmp", not compressed, right after IHDR
    WebP   VP8X (flag XMP), the simple file's VP8L, "XMP "

A mark is put into a finished file and taken out again byte by byte, so that decoders see what they saw without it; the pixels are
not touched. Anything else in its place is left there, for the decoder to refuse.

References: XMP Specification Part 3 (ISO 16684-1), Adobe 2020; WebP container, RFC 9649.
"""

from __future__ import annotations

import struct
import zlib

from cfaug.data.source_types import SOURCE_TYPES

_URI = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_AFTER = 33  # bytes of a PNG up to the end of IHDR
_XMP_FLAG = 0x04


def _xmp(source_type: str) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="{_URI}{source_type}"/></rdf:RDF></x:xmpmeta>'
    ).encode("ascii")


def _png_chunk(source_type: str) -> bytes:
    body = b"iTXtXML:com.adobe.xmp" + bytes(5) + _xmp(source_type)  # not compressed, no language, no translation
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _webp_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


_PNG = {name: _png_chunk(name) for name in SOURCE_TYPES}
_WEBP = {name: _webp_chunk(b"XMP ", _xmp(name)) for name in SOURCE_TYPES}
_VP8X = 30  # bytes of an extended WebP before VP8L: the RIFF header, and VP8X with its header


def marked(data: bytes, field: str, source_type: str) -> bytes:
    """The ``png`` or simple lossless ``webp`` file in `data` with the mark of `source_type`, one of ``SOURCE_TYPES``."""
    if field == "png":
        return data[:_AFTER] + _PNG[source_type] + data[_AFTER:]
    (bits,) = struct.unpack_from("<I", data, 21)  # 14 bits width - 1, 14 bits height - 1
    size = (bits & 0x3FFF).to_bytes(3, "little") + (bits >> 14 & 0x3FFF).to_bytes(3, "little")
    chunks = b"WEBP" + _webp_chunk(b"VP8X", bytes([_XMP_FLAG, 0, 0, 0]) + size) + data[12:] + _WEBP[source_type]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def mark_of(data: bytes, field: str) -> str | None:
    """The source type that an image file is marked with; None where it has no mark of ours."""
    if field == "png":
        return next((name for name, chunk in _PNG.items() if data.startswith(chunk, _AFTER)), None)
    if data[12:16] != b"VP8X":
        return None
    return next((name for name, chunk in _WEBP.items() if data.endswith(chunk)), None)


def unmarked(data: bytes, field: str) -> bytes:
    """The file without its mark, as it was before :func:`marked`; any other file as it is."""
    if (source_type := mark_of(data, field)) is None:
        return data
    if field == "png":
        return data[:_AFTER] + data[_AFTER + len(_PNG[source_type]) :]
    inner = data[_VP8X : -len(_WEBP[source_type])]
    simple = b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + inner
    # a header that says something else (alpha, animation, another size) is not ours
    return simple if len(inner) >= 13 and marked(simple, field, source_type) == data else data
