"""A corpus of hostile shards, built in code: each is bytes that a tar reader could be made to trip over.

`shards(canary)` gives (name, tar, seen by the random reader) one at a time; `consistent` puts one into a directory whose
manifest and index have the right digests of it, so that no checksum gives it away. `directories()` are valid shards under
hostile manifests and indices. Payloads that would run code create the file `canary`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cfaug.offline.format import ManifestRow

KEYS = [f"train-{i:09d}" for i in range(4)]
ZEROS = b"\0" * 1024


class Shard(NamedTuple):
    name: str
    tar: bytes
    reader: bool = (
        True  # False: only headers, names or padding are bad, which a read by offset and sha256 does not look at
    )


def record(key: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "key": key, "source_key": "a.png", "source_digest": "0" * 64, "split": "train",
        "do": {"colour": "red"}, "attributes": {"colour": "red"}, "factual": {"colour": "blue"}, "target": "1",
        "seed": 1, "replica": 0, "model": "m", "quality": {"change_l1": 0.25}, **changes,
    }  # fmt: skip


def text(key: str, **changes: Any) -> bytes:
    return json.dumps(record(key, **changes), separators=(",", ":")).encode()


def picture(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


PNG = picture()


def info(name: str, size: int, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname, member.gname = size, 0o444, "cfaug", "cfaug"
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def entry(name: str, data: bytes, format: int = tarfile.USTAR_FORMAT, **fields: Any) -> bytes:
    return info(name, len(data), **fields).tobuf(format, "utf-8", "surrogateescape") + padded(data)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def patched(block: bytes, at: int, value: bytes) -> bytes:
    """A header with other bytes at `at`, and a checksum that is right again."""
    block = block[:at] + value + block[at + len(value) :]
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def ended(members: bytes) -> bytes:
    whole = members + ZEROS
    return whole + b"\0" * (-len(whole) % 10240)


def pair(key: str, image: bytes = PNG, field: str = "png", **changes: Any) -> bytes:
    return entry(f"{key}.json", text(key, **changes)) + entry(f"{key}.{field}", image)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, width: int = 8, height: int = 8, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    rows = data or zlib.compress(b"\0" * (8 * 25))
    ihdr = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def shards(canary: Path) -> Iterator[Shard]:
    """The tars, each bad in one way; the rest of it is as it should be."""
    a, b, c, _ = KEYS
    evil = pickle.dumps(Canary(canary))
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({canary}) (w) file closefile\n%%EOF\n".encode()
    first, last = pair(a), pair(b)
    bomb = zlib.compress(b"\0" * (80 << 20))

    # what would run code
    yield Shard("a pickle called png", ended(first + pair(b, evil)))
    yield Shard("a pickle as record", ended(entry(f"{a}.json", evil) + entry(f"{a}.png", PNG)))
    for field in ("pkl", "pyd", "pth", "npy", "cls"):
        yield Shard(
            f"a pickle as field {field}", ended(entry(f"{a}.json", text(a)) + entry(f"{a}.{field}", evil) + last)
        )
    yield Shard("a third field", ended(first + entry(f"{a}.zz.pyd", evil) + last))
    yield Shard("an EPS called png", ended(pair(a, eps)))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    yield Shard("an SVG called png", ended(pair(a, svg)))
    for kind in ("GIF", "TIFF", "BMP", "JPEG", "PPM", "ICO", "PDF"):
        yield Shard(f"a {kind} called png", ended(pair(a, picture(kind=kind, size=(16, 16)))))
    yield Shard("a webp called png", ended(pair(a, picture(kind="WEBP", lossless=True))))
    yield Shard("a png called webp", ended(pair(a, field="webp")))

    # what would write elsewhere
    for kind, code in (("hard link", b"1"), ("symlink", b"2"), ("character device", b"3"), ("block device", b"4"),
                       ("directory", b"5"), ("fifo", b"6"), ("contiguous file", b"7"), ("unknown type", b"Z")):  # fmt: skip
        yield Shard(f"a {kind}", ended(first + info(b + ".json", 0, type=code, linkname="/etc/passwd").tobuf() + last))
        block = patched(first[:512], 156, code)
        yield Shard(f"a {kind} with a payload", ended(block + first[512:]), reader=False)
    for name in ("/tmp/x", "../x", "../../x", "./x", "a/b", "a\\..\\x", "C:x", "a.b", "", "é", "a\nb", "a b", "-rf*", "k" * 94 + "."):  # fmt: skip
        tar = ended(entry(f"{name}.json", text("x")) + entry(f"{name}.png", PNG))
        yield Shard(f"the name {name!r}", tar, reader=False)
    nul = patched(first[:512], 0, b"train-0\0evil.json".ljust(100, b"\0"))
    yield Shard("a NUL in a name", ended(nul + first[512:]), reader=False)
    yield Shard("a prefix that escapes", ended(patched(first[:512], 345, b"../..") + first[512:]), reader=False)
    yield Shard("an upper-case field", ended(entry(f"{a}.JSON", text(a)) + entry(f"{a}.PNG", PNG)), reader=False)

    # what would mix samples up
    yield Shard("a key twice, adjacent", ended(first + first + last))
    yield Shard("a key twice, apart", ended(first + last + first))
    yield Shard("members not adjacent", ended(first + entry(f"{b}.json", text(b)) + pair(c) + entry(f"{b}.png", PNG)))
    yield Shard("image first", ended(entry(f"{a}.png", PNG) + entry(f"{a}.json", text(a))))
    yield Shard("no image", ended(first + entry(f"{b}.json", text(b))), reader=False)
    yield Shard("no record", ended(first + entry(f"{b}.png", PNG)), reader=False)
    yield Shard("a record twice", ended(entry(f"{a}.json", text(a)) + first))
    yield Shard("png and webp in one shard", ended(first + pair(b, picture(kind="WEBP", lossless=True), "webp")))
    yield Shard("a record of another key", ended(entry(f"{a}.json", text(c)) + entry(f"{a}.png", PNG)), reader=False)
    yield Shard("a record of another format", ended(pair(a, schema=2)))

    # headers
    gnu, pax = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    yield Shard(
        "a GNU long name", ended(entry("k" * 110 + ".json", text(a), gnu) + entry("k" * 110 + ".png", PNG, gnu))
    )
    yield Shard("a GNU magic", ended(entry(f"{a}.json", text(a), gnu) + entry(f"{a}.png", PNG, gnu)), reader=False)
    for what, value in (("path", "../../x.json"), ("size", "99999999999"), ("GNU.sparse.size", "1"), ("comment", "x" * (8 << 20))):  # fmt: skip
        yield Shard(f"a pax {what}", ended(entry(f"{a}.json", text(a), pax, pax_headers={what: value}) + last))
    glob = tarfile.TarInfo.create_pax_global_header({"path": "../x"})
    yield Shard("a global pax header", ended(glob + first))
    yield Shard("a sparse file", ended(info(f"{a}.json", 512, type=b"S").tobuf(gnu) + padded(text(a)) + entry(f"{a}.png", PNG)), reader=False)  # fmt: skip
    for what, value in (("negative", b"\xff" * 12), ("base-256", b"\x80" + b"\0" * 7 + b"\1\0\0\0"), ("all sevens", b"77777777777\0"),
                        ("no number", b"12x45678901\0"), ("a minus", b"-0000000001\0"), ("zero", b"00000000000\0"), ("spaces", b" " * 12)):  # fmt: skip
        yield Shard(f"a size: {what}", ended(patched(first[:512], 124, value) + first[512:] + last), reader=False)
    yield Shard("a wrong checksum", ended(first[:148] + b"000000\0 " + first[156:]), reader=False)
    yield Shard("a mode that runs", ended(patched(first[:512], 100, b"0007777\0") + first[512:]), reader=False)
    yield Shard("another owner", ended(patched(first[:512], 108, b"0001750\0") + first[512:]), reader=False)
    yield Shard("another time", ended(patched(first[:512], 136, b"14000000000\0") + first[512:]), reader=False)
    used = first[:512].rstrip(b"\0")
    yield Shard(
        "letters in a header's tail", ended(used + b"\0" * (508 - len(used)) + b"evil" + first[512:]), reader=False
    )

    # images that grow
    yield Shard("a bomb of 60000 x 60000", ended(pair(a, png(width=60000, height=60000, data=bomb))))
    flat = zlib.compress(b"\0" * (6000 * 18001), 1)  # every row is there, and Pillow has no objection
    yield Shard("a bomb of 6000 x 6000", ended(pair(a, png(width=6000, height=6000, data=flat))))
    yield Shard("an image of 0 x 8", ended(pair(a, png(width=0))))
    yield Shard("a zTXt bomb", ended(pair(a, png(chunk(b"zTXt", b"k\0\0" + bomb)))))
    yield Shard("an iCCP bomb", ended(pair(a, png(chunk(b"iCCP", b"k\0\0" + bomb)))))
    yield Shard("an iTXt bomb", ended(pair(a, png(chunk(b"iTXt", b"k\0\1\0\0\0" + bomb)))))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "PNG", save_all=True, append_images=frames[1:])
    yield Shard("an animated png", ended(pair(a, animated.getvalue())))
    animated = io.BytesIO()
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield Shard("an animated webp", ended(pair(a, animated.getvalue(), "webp")))
    yield Shard("a lossy webp", ended(pair(a, picture(kind="WEBP"), "webp")))
    huge = bytearray(picture(kind="WEBP", lossless=True))
    huge[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    yield Shard("a webp of 16384 x 16384", ended(pair(a, bytes(huge), "webp")))
    see_through = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(see_through, "WEBP", lossless=True)
    yield Shard("a webp with alpha", ended(pair(a, see_through.getvalue(), "webp")))
    for mode in ("P", "RGBA", "LA", "1"):
        yield Shard(f"a png of mode {mode}", ended(pair(a, picture(mode))))
    yield Shard("a png of 16 bits", ended(pair(a, png(bits=16, data=zlib.compress(b"\0" * (8 * 49))))))
    yield Shard("a grey png of 16 bits", ended(pair(a, picture("I;16"))))
    yield Shard("half a png", ended(pair(a, PNG[: len(PNG) // 2])))
    yield Shard("a png without pixels", ended(pair(a, png(data=zlib.compress(b"\0")))))
    yield Shard("a png with a zip behind it", ended(pair(a, PNG + b"PK\3\4" + b"\0" * 40)))
    yield Shard("a chunk longer than the file", ended(pair(a, PNG[:33] + b"\x7f\xff\xff\xff" + PNG[37:])))
    yield Shard("an empty png", ended(pair(a, b"")))

    # records that grow
    yield Shard("100 MB of JSON", ended(entry(f"{a}.json", text(a) + b" " * (100 << 20)) + entry(f"{a}.png", PNG)))
    good = text(a)
    for what, bad in (
        ("nested deeply", b"[" * 300_000 + b"]" * 300_000),
        ("nested inside do", good.replace(b'"do":{', b'"do":{"x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b",")),
        ("NaN", good.replace(b"0.25", b"NaN")),
        ("Infinity", good.replace(b"0.25", b"-Infinity")),
        ("1e999", good.replace(b"0.25", b"1e999")),
        ("a huge int", good.replace(b"0.25", b"9" * 4000)),
        ("a seed of 400 digits", good.replace(b'"seed":1', b'"seed":1' + b"0" * 400)),
        ("a name twice", good.replace(b'"seed":1', b'"seed":1,"seed":2')),
        ("a bool for an int", good.replace(b'"seed":1', b'"seed":true')),
        ("half a surrogate pair", good.replace(b"a.png", b"\\ud800")),
        ("invalid UTF-8", good.replace(b"a.png", b"\xff\xfe\xfd")),
        ("UTF-16", good.decode().encode("utf-16")),
        ("a byte order mark", b"\xef\xbb\xbf" + good),
        ("a list", b"[" + good + b"]"),
        ("two objects", good + good),
        ("null", b"null"),
        ("a missing field", good.replace(b'"seed":1,', b"")),
        ("an unknown field", good.replace(b'"seed":1,', b'"seed":1,"__class__":"os.system",')),
        ("another split", good.replace(b'"split":"train"', b'"split":"../x"')),
    ):  # fmt: skip
        yield Shard(f"JSON: {what}", ended(entry(f"{a}.json", bad) + entry(f"{a}.png", PNG)))

    # the file as a whole
    yield Shard("a million entries", ended(info(f"{a}.json", 0).tobuf() * 1_000_000))
    yield Shard("a gzipped tar", gzip.compress(ended(first)))
    yield Shard("an empty file", b"")
    yield Shard("zeros only", b"\0" * 10240)
    yield Shard("no end", first)
    yield Shard("one zero block", first + b"\0" * 512, reader=True)
    yield Shard("data behind the end", ended(first)[:-512] + evil.ljust(512, b"\0"), reader=False)
    yield Shard("a second tar behind the first", ended(first) + ended(last))
    yield Shard(
        "padding that is not zero", ended(first[: 512 + len(good)] + b"evil" + first[516 + len(good) :]), reader=False
    )
    yield Shard("noise", np.random.default_rng(0).bytes(20480))


def consistent(directory: Path, shard: Shard) -> Path:
    """`shard` with an index and a manifest that have the digests of what is there, as an attacker would make them."""
    directory.mkdir()
    rows = [index_row(*found) for found in _pairs(shard.tar)]
    write(directory, shard.tar, b"".join(json.dumps(row).encode() + b"\n" for row in rows), len(rows))
    return directory


def write(directory: Path, tar: bytes, lines: bytes, samples: int, **changes: Any) -> None:
    name = "cf-train-000000"
    fields: dict[str, Any] = {
        "name": f"{name}.tar", "count": samples, "bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest(),
        "index": f"{name}.index.jsonl", "index_bytes": len(lines), "index_sha256": hashlib.sha256(lines).hexdigest(),
        "plan": "p", "model": "m", "environment": {}, **changes,
    }  # fmt: skip
    (directory / f"{name}.tar").write_bytes(tar)
    (directory / f"{name}.index.jsonl").write_bytes(lines)
    (directory / "manifest.jsonl").write_bytes(ManifestRow(**fields).line())


def directories() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Valid shards under hostile manifests and indices, their digests right."""
    tar = ended(pair(KEYS[0]) + pair(KEYS[1]))
    rows = [index_row(*found) for found in _pairs(tar)]

    def index(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
        def build(directory: Path) -> None:
            mine = json.loads(json.dumps(rows))
            lines = change(mine)
            content = lines if isinstance(lines, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in mine)
            write(directory, tar, content, content.count(b"\n"))

        return build

    def manifest(**changes: Any) -> Callable[[Path], None]:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        return lambda directory: write(directory, tar, content, 2, **changes)

    for name in ("../x.tar", "/etc/passwd", "a/b.tar", "x.tar\n", "..tar", "\0.tar", "x" * 200 + ".tar"):
        yield f"a manifest that names {name[:20]!r}", manifest(name=name)
    yield "a manifest whose index is elsewhere", manifest(index="../../etc/passwd")
    yield "a million samples stated", manifest(count=1_000_000)
    yield "an index of a terabyte stated", manifest(index_bytes=1 << 40)
    yield "a tar of a terabyte stated", manifest(bytes=1 << 40)
    yield "a negative count", manifest(count=-1)
    yield "a float size", manifest(bytes=float(len(tar)))
    yield "an environment of a megabyte", manifest(environment={"x": "y" * (1 << 20)})
    yield "a member of a terabyte", index(lambda r: r[0]["png"].__setitem__(1, 1 << 40))
    yield "a member at a negative offset", index(lambda r: r[0]["png"].__setitem__(0, -512))
    yield "a member behind the end", index(lambda r: r[1]["png"].__setitem__(0, 1 << 30))
    yield "two samples at one place", index(lambda r: r.__setitem__(1, {**r[0], "key": KEYS[1]}))
    yield "members exchanged", index(lambda r: r[0].update(json=r[1]["json"], png=r[1]["png"]))
    yield "a key that is a path", index(lambda r: r[0].update(key="../../x"))
    yield "a key twice in an index", index(lambda r: r[1].update(key=KEYS[0]))
    yield "both png and webp", index(lambda r: r[0].update(webp=r[0]["png"]))
    yield "a pickle field", index(lambda r: r[0].update(pyd=r[0].pop("png")))
    yield "an index nested deeply", index(lambda r: b"[" * 60_000 + b"\n")
    yield "an index of one long line", index(lambda r: b'"' + b"x" * (1 << 20) + b'"\n')
    yield "an index with NaN", index(lambda r: r[0]["png"].__setitem__(0, float("nan")))
    yield "an index that is a pickle", index(lambda r: pickle.dumps(print) + b"\n")
    yield "another source in the index", index(lambda r: r[0].update(source_key="another.png"))


def index_row(key: str, json_at: tuple[int, bytes], image_at: tuple[int, bytes], field: str) -> dict[str, Any]:
    members = [[at, len(data), hashlib.sha256(data).hexdigest()] for at, data in (json_at, image_at)]
    return {
        "key": key, "source_key": "a.png", "source_digest": "0" * 64, "split": "train", "null": False,
        "json": members[0], field: members[1],
    }  # fmt: skip


def _pairs(tar: bytes) -> Iterator[tuple[str, tuple[int, bytes], tuple[int, bytes], str]]:
    """Whatever an ordinary tar reader takes for members, two by two; where it finds none, the bytes where they would be."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", errorlevel=0) as members:
            for member, _ in zip(members, range(8), strict=False):
                data = tar[member.offset_data : member.offset_data + max(member.size, 0)]
                found.append((member.name, member.offset_data, data[: 1 << 27]))
    except (tarfile.TarError, ValueError, EOFError, OverflowError):
        pass
    if len(found) < 2:
        found = [("x.json", 512, tar[512:1024]), ("x.png", 1536, tar[1536:2048])]
    for n, (first, second) in enumerate(zip(found[::2], found[1::2], strict=False)):
        key = first[0].partition(".")[0]
        field = "webp" if second[0].endswith(".webp") else "png"
        plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
        yield key if plain else f"x{n}", (first[1], first[2]), (second[1], second[2]), field
