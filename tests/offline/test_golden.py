"""The golden shard: written once with format 1, and read by every reader from then on. Never regenerate it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.make_golden import DOS, make

from cfaug.data import pixel_digest
from cfaug.offline import ShardReader, verify
from cfaug.offline.format import canonical_json

GOLDEN = Path(__file__).parents[2] / "shards" / "golden"
README = GOLDEN.parent / "README.md"
FILES = {
    "cf-train-000000.tar": "cdf877e8e76e9d6b2120f565d47dcdc5bf3762cd5e118e9d132177f0653cd52c",
    "cf-train-000000.index.jsonl": "d8c1778051218b334810ec77ff9e783232b3b65d03b1afed56bccde1dfc8b10a",
    "manifest.jsonl": "5ab9835b6acf7d4cc0771089f0be0ae71ea949553616c7dd0645c13ce98c0499",
}
PIXELS = (
    "3dc13f678389b670e4d39c5eafe2780d2d4f5aa6503eb61ccb292213a4c47804",
    "910437fb5aae7eb1180a17213ca9e0bdbcf4b5a707831651ebbee4c038e8a4de",
    "b0883476f701bca36fbc47ce6fc5158190ad383eab84d71c3442e0e04a341121",
    "2d0c317f5d8aac58b712faf474828085371802a304e417f180ec8495c65c24be",
    "85b414377f13a1cb575a99dd2d832085d931097435241a287bd1f26cec4d20dd",
    "74995c29450d3f7d60cb0d3bf3620b2302575b37e9eaa8445a838dd8e26c02d7",
    "2b0a347849e859df7001bdb2fc975209646b2f341dd6d523aafbe05208d6279e",
    "4530a77075557fe22ef9b43ade5b9192ae58d991deae4146e139492ba5d22a37",
)
RECORDS = (
    "3c2684b2fca8fa39e9cef92a0c22b6df20c07e124bc0646b866838e0835720d4",
    "30a454dd0879b756689c0000f8c39485c2e41fe331c86ef18a9ad3261f196f5c",
    "c050b9abf04d159f7069f8f903e747341f7fde9474b7aa7035198b64fc170c13",
    "651ccfcf187b2590c0b0c82b2d56a137b5f449516edf2c2cfe54b6aeee2da9c6",
    "ca65125d884e04b6c3a2fb7acfddd8f4110971676d5177bd340a6cfc9fd9cc8a",
    "33735f2c99a7e9568a03d38fb73edac5db88927defd641b840707ff4c3e5b48c",
    "5ed77944f016c014ff6ca992d176ea95c91862006c70fb425e154526967e9561",
    "e74e7cf65f166d5c1eafec8d107665d0ce7e1df72671f6dd35248cc794fa132c",
)


def test_the_files_are_the_golden_ones() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.iterdir()}
    assert found == FILES


def test_todays_reader_reads_them() -> None:
    reader = ShardReader(GOLDEN)
    assert reader.keys == [f"train-{i:09d}" for i in range(8)]
    assert tuple(pixel_digest(reader.image(i)) for i in range(8)) == PIXELS
    assert tuple(hashlib.sha256(canonical_json(reader.record(i))).hexdigest() for i in range(8)) == RECORDS
    assert [reader.record(i)["do"] for i in range(8)] == [dict(d.assignments) for d in DOS]
    assert [row.null for row in reader.index] == [False] * 6 + [True] * 2
    report = verify(GOLDEN)
    assert report.ok, str(report)
    assert report.counts == {"shards": 1, "samples": 8, "null": 2, "sources": 3, "bytes": 20480}


def test_a_reconstruction_of_the_tiny_model_is_its_source() -> None:
    reader = ShardReader(GOLDEN)
    for i in (6, 7):
        assert pixel_digest(reader.image(i)) == reader.record(i)["source_digest"]


def test_todays_writer_writes_the_same_samples(tmp_path) -> None:
    """Records and pixels, whatever the versions of Pillow, zlib and torch; bytes only promise that within versions."""
    make(tmp_path)
    ours, golden = ShardReader(tmp_path), ShardReader(GOLDEN)
    for i in range(8):
        mine, theirs = ours.sample(i), golden.sample(i)
        assert {**mine.record, "quality": None} == {**theirs.record, "quality": None}
        assert mine.record["quality"]["change_l1"] == pytest.approx(theirs.record["quality"]["change_l1"], abs=0.002)
        np.testing.assert_allclose(mine.image.astype(int), theirs.image.astype(int), atol=1)


def test_the_formats_readme_is_enough_to_read_it() -> None:
    """A reader written from shards/README.md alone, with the standard library: manifest, index, bytes."""
    rows = [json.loads(line) for line in (GOLDEN / "manifest.jsonl").read_bytes().split(b"\n")[:-1]]
    for row in rows:
        stated = row.pop("row_sha256")
        compact = json.dumps(row, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
        assert hashlib.sha256(compact).hexdigest() == stated
        tar = (GOLDEN / row["name"]).read_bytes()
        index = (GOLDEN / row["index"]).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (row["bytes"], row["sha256"])
        assert (len(index), hashlib.sha256(index).hexdigest()) == (row["index_bytes"], row["index_sha256"])
        with tarfile.open(GOLDEN / row["name"]) as members:
            by_name = {m.name: members.extractfile(m).read() for m in members}  # type: ignore[union-attr]
        for line in index.splitlines():
            sample = json.loads(line)
            for field in ("json", "png"):
                offset, size, sha256 = sample[field]
                payload = tar[offset : offset + size]
                assert hashlib.sha256(payload).hexdigest() == sha256
                assert payload == by_name[f"{sample['key']}.{field}"]
            assert json.loads(by_name[f"{sample['key']}.json"])["key"] == sample["key"]


def test_the_formats_readme_names_every_field() -> None:
    text = README.read_text()
    reader = ShardReader(GOLDEN)
    names = [*reader.record(0), *json.loads(reader.manifest[0].line()), *reader.index[0]._fields]
    assert [name for name in names if f"`{name}`" not in text] == []
