"""The reader's columns say what the parsed index says, from memory and from a file, and tell sources apart."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from helpers.column_samples import arrays, committed, is_mapped, made, picture, published
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfaug.causal.intervention import do
from cfaug.data import pixel_digest
from cfaug.data.lookup import sample_hash
from cfaug.errors import ShardError
from cfaug.offline import Plan, PlanRow, ShardReader, generate, verify, write_shard
from cfaug.offline.commit import open_destination
from cfaug.offline.format import (
    BLOCK,
    COLUMNS,
    MAX_IMAGE_BYTES,
    MAX_RECORD_BYTES,
    SPLITS,
    IndexRow,
    Member,
    Quick,
    Sample,
    SourceHashes,
)
from cfaug.offline.read import SourceTable, key_hash, key_hashes
from cfaug.offline.reading import columns, plain
from cfaug.offline.reading.column_file import publish_columns
from cfaug.offline.reading.plain import parse_row
from cfaug.offline.storage import LocalStorage

ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(SPLITS), st.booleans()), min_size=1, max_size=14
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, per_shard=st.integers(1, 6), image=st.sampled_from(["png", "webp"]), every=st.booleans())
def test_columns_say_what_the_rows_say(
    rows: list[tuple[int, bool, str, bool]], per_shard: int, image: str, every: bool
) -> None:
    samples = [made(i, s, null, split, hashed or every) for i, (s, null, split, hashed) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as place:
        parts = [samples[at : at + per_shard] for at in range(0, len(samples), per_shard)]
        found = committed(Path(place), parts, image)
        built = ShardReader(found)
        publish_columns(LocalStorage(found), built.manifest)
        mapped = ShardReader(found)
        assert (is_mapped(built), is_mapped(mapped)) == (False, True)
        assert arrays(mapped._columns) == arrays(built._columns)
        agrees(mapped, samples)
        assert list(built.index) == list(mapped.index)
        assert pickle.loads(pickle.dumps(mapped.index[0])) == built.index[0]


def agrees(reader: ShardReader, samples: list[Sample]) -> None:
    assert len(reader) == len(samples)
    assert reader.keys == [one.key for one in samples]
    assert reader.nulls.tolist() == [not one.record["do"] for one in samples]
    assert [SPLITS[code] for code in reader.splits] == [one.record["split"] for one in samples]
    for i, one in enumerate(samples):
        row, read = reader.index[i], reader.sample(i)
        assert (row.key, row.source_key, row.null) == (one.key, one.record["source_key"], not one.record["do"])
        assert (read.key, read.record) == (one.key, one.record)
        assert reader.record(i) == one.record
        np.testing.assert_array_equal(read.image, one.image)
        np.testing.assert_array_equal(np.asarray(reader.picture(i)), one.image)
        np.testing.assert_array_equal(reader.image(i), one.image)
        assert (row.xxh3 is None) == (one.source is None)
    sources = sorted({one.record["source_key"] for one in samples})
    number = {key: int(key.split()[-1].removesuffix(".png")) for key in sources}
    tables = {
        "by_key": (reader.by_key, {key: key_hash(key) for key in sources}),
        "by_pixels": (reader.by_pixels, {key: reader.lookup(picture(number[key], 1)) for key in sources}),
    }
    for table, hashes in tables.values():
        expected = {key: rows_of(samples, key) for key in sources}
        assert {key: listed(table, hashes[key]) for key in sources} == expected
        unknown = [0, 1, 1 << 63, (1 << 64) - 1]
        many = table.find_many(np.array([*hashes.values(), *unknown], np.uint64))
        assert list(zip(*(part.tolist() for part in many))) == [table.find(h) for h in [*hashes.values(), *unknown]]
        assert all(table.find(h) == (0, 0, 0) for h in unknown)
    assert key_hashes(sources).tolist() == [key_hash(key) for key in sources]
    for i, one in enumerate(samples):
        own = picture(number[one.record["source_key"]], 1)
        assert reader.confirms(i, own)
        assert reader.confirms(i, Image.fromarray(own))
        assert reader.lookup(Image.fromarray(own)) == reader.lookup(own)
        own[-1, -1, 0] ^= 1
        assert not reader.confirms(i, own)


def rows_of(samples: list[Sample], key: str) -> tuple[list[int], list[int]]:
    of = [i for i, one in enumerate(samples) if one.record["source_key"] == key]
    return [i for i in of if samples[i].record["do"]], [i for i in of if not samples[i].record["do"]]


def listed(table: SourceTable, hash: int) -> tuple[list[int], list[int]]:
    start, counterfactuals, nulls = table.find(hash)
    rows = table.rows[start : start + counterfactuals + nulls].tolist()
    return rows[:counterfactuals], rows[counterfactuals:]


def test_images_with_the_same_grid_are_told_apart_by_all_their_pixels(tmp_path: Path) -> None:
    """Frames of a fixed camera: the first hash that tells all sources apart is taken."""
    one = picture(0, size=(70, 70))
    other = one.copy()
    other[0, 0] ^= 255  # not on the grid
    assert sample_hash(one) == sample_hash(other)
    reader = ShardReader(published(tmp_path, [[made(0, 0, of=one), made(1, 1, of=other), made(2, 0, of=one)]]))
    assert listed(reader.by_pixels, reader.lookup(one)) == ([0, 2], [])
    assert listed(reader.by_pixels, reader.lookup(other)) == ([1], [])
    assert [reader.confirms(i, one) for i in range(3)] == [True, False, True]


def test_one_image_under_two_keys_is_one_source_by_pixels(tmp_path: Path) -> None:
    one = picture(0)
    reader = ShardReader(committed(tmp_path, [[made(0, 0, of=one), made(1, 1, of=one)]]))
    assert listed(reader.by_pixels, reader.lookup(one)) == ([0, 1], [])
    assert listed(reader.by_key, key_hash("source \u00fc 1.png")) == ([1], [])


def test_grey_images_are_found_as_rgb(tmp_path: Path) -> None:
    grey = picture(3, channels=1)
    for hashed in (True, False):
        reader = ShardReader(committed(tmp_path / str(hashed), [[made(0, 0, of=grey, hashed=hashed)]]))
        for same in (grey, grey[..., 0], np.repeat(grey, 3, 2), Image.fromarray(grey[..., 0])):
            assert listed(reader.by_pixels, reader.lookup(same)) == ([0], [])
            assert reader.confirms(0, same)


def test_sources_that_share_a_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = committed(tmp_path / "a", [[made(0, 0)], [made(1, 1)]])
    with monkeypatch.context() as patch:
        patch.setattr(columns, "key_hash", lambda key: 7 if "source" in key else key_hash(key))
        with pytest.raises(ShardError, match=r"sources 'source . 0\.png' and 'source . 1\.png': .* their key"):
            ShardReader(found)
    alike = [replace(made(i, i), source=SourceHashes(3, 4)) for i in range(2)]
    with pytest.raises(ShardError, match=r"'source . 1\.png': expected different hashes of their pixels") as caught:
        ShardReader(committed(tmp_path / "b", [alike]))
    assert "\n" not in str(caught.value)


def test_digests_that_only_begin_alike_are_two_sources(tmp_path: Path) -> None:
    """Of sources without quick hashes the first 64 bits of the sha256 are looked up, and the next 64 tell them apart."""
    samples = [made(i, i, hashed=False) for i in range(2)]
    for sample, rest in zip(samples, "01"):
        sample.record["source_digest"] = "a" * 16 + rest * 48
    with pytest.raises(ShardError, match=r"'source . 1\.png': expected different hashes of their pixels"):
        ShardReader(committed(tmp_path, [samples]))


def test_a_row_holds_the_most_that_the_format_allows() -> None:
    member = Member(BLOCK, MAX_RECORD_BYTES, "0" * 64)
    row = IndexRow("k", "s", "0" * 64, "held out", True, member, Member(BLOCK, MAX_IMAGE_BYTES, "0" * 64))
    (sizes,) = columns._part([row], "here")["sizes"].tolist()
    assert sizes & columns.JSON_MASK == MAX_RECORD_BYTES
    assert sizes >> columns.JSON_BITS & columns.IMAGE_MASK == MAX_IMAGE_BYTES
    assert [sizes >> bit & 1 for bit in (columns.NULL, columns.WEBP, columns.XXH3)] == [1, 0, 0]
    assert sizes >> columns.SPLIT == 3  # a split that is none of ours is not taken for train
    with pytest.raises(ShardError, match="here: expected a shard of less than 2 TiB"):
        columns._part([row._replace(json=member._replace(offset=BLOCK << 32))], "here")


def test_a_source_that_changed_between_two_shards_is_refused(tmp_path: Path) -> None:
    place = committed(tmp_path, [[made(0, 0)], [made(1, 0, of=picture(9, 9))]])
    with pytest.raises(ShardError, match=r"source 'source . 0\.png': expected all of its samples to be made from one"):
        ShardReader(place)


def test_a_key_that_occurs_twice_is_found_and_a_shared_hash_of_keys_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample 'k1': the key is also in another place"):
        ShardReader(committed(tmp_path / "twice", [[made(0, 0), made(1, 0)], [made(1, 0), made(2, 1)]]))
    place = committed(tmp_path / "once", [[made(0, 0), made(1, 0)], [made(2, 1)]])
    monkeypatch.setattr(columns, "key_hash", lambda key: 7 if key.startswith("k") else key_hash(key))
    assert len(ShardReader(place)) == 3


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("image", ["png", "webp"])
def test_every_flipped_byte_of_an_image_or_a_record_is_found(tmp_path: Path, image: str, hashed: bool) -> None:
    place = published(tmp_path, [[made(i, i, hashed=hashed) for i in range(2)]], image)
    tar = place / "cf-train-000000.tar"
    whole, row = tar.read_bytes(), ShardReader(place).index[1]
    for member, reads in ((row.image, ("picture", "image", "sample")), (row.json, ("record", "sample"))):
        for at in range(member.offset, member.offset + member.size):
            tar.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            reader = ShardReader(place)
            for read in reads:
                with pytest.raises(
                    ShardError, match=r"sample 'k1': expected the bytes the index vouches for, found other"
                ):
                    getattr(reader, read)(1)
            reader.sample(0)


def test_a_wrong_xxh3_in_an_index_is_refused_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = made(0, 0)
    with monkeypatch.context() as patch:
        patch.setattr("xxhash.xxh3_64_intdigest", lambda data: 5)
        place = committed(tmp_path, [[sample]])
    with pytest.raises(ShardError, match="vouches"):
        ShardReader(place).picture(0)
    assert any("sample 'k0': its image does not have the xxh3" in problem for problem in verify(place).problems)


@pytest.mark.parametrize("xxh3", ['["1"]', '["' + "0" * 16 + '"]', "[1,2,3]", '"' + "0" * 16 + '"', "null", "{}"])
def test_an_index_row_with_another_xxh3_is_refused(xxh3: str) -> None:
    row = IndexRow("k", "s", "d", "train", False, Member(512, 1, "0" * 64), Member(1536, 1, "0" * 64))
    line = row.line().rstrip(b"}\n") + b',"xxh3":%s}' % xxh3.encode()
    with pytest.raises(ShardError, match="expected an index row"):
        IndexRow.parse(line, "here")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_plain_row_is_what_json_says(data: st.DataObject) -> None:
    """Whatever the line, also one that was edited in a place: the quick way says what the slow one says, or nothing."""
    text = st.text(max_size=6) | st.sampled_from(["[" * 201, "a/b.png", '"', "\\", "{}"])
    hexes = [data.draw(st.text("0123456789abcdef", min_size=n, max_size=n)) for n in (64, 64, 64, 16, 16, 16)]
    row = IndexRow(
        "k-1", data.draw(text), hexes[0], data.draw(st.sampled_from([*SPLITS, "other"])), data.draw(st.booleans()),
        Member(data.draw(st.sampled_from([0, 511, 512, 1 << 40])), data.draw(st.sampled_from([0, 1, 1 << 20, 1 << 21])), hexes[1]),
        Member(512, data.draw(st.sampled_from([1, 1 << 26, (1 << 26) + 1])), hexes[2]),
        xxh3=Quick(*hexes[3:]) if data.draw(st.booleans()) else None,
    )  # fmt: skip
    try:
        line = row.line().replace(b'"png"', data.draw(st.sampled_from([b'"png"', b'"webp"', b'"gif"'])))
    except UnicodeEncodeError:
        return
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(line) - 1))
        line = line[:at] + data.draw(st.binary(max_size=2)) + line[at + 1 :]
    found = []
    for parse in (IndexRow.parse, parse_row):
        try:
            found.append(repr(parse(line, "here")))
        except ShardError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_the_quick_way_is_taken() -> None:
    row = IndexRow("k", "a/b c.png", "0" * 64, "val", True, Member(512, 1, "0" * 64), Member(1536, 9, "f" * 64))
    for one in (row, row._replace(xxh3=Quick("0" * 16, "1" * 16, "2" * 16)), row._replace(png=None, webp=row.png)):
        assert plain._plain(one.line()) == plain._plain(one.line().strip()) == one


def test_generation_writes_the_field_and_the_file(tmp_path: Path) -> None:
    data = tiny.dataset(6)
    rows = [
        PlanRow(f"k{i}", f"source {i % 6}.png", do() if i >= 6 else do(colour="red"), i, i // 4, i // 6)
        for i in range(12)
    ]
    plan = Plan(rows, samples_per_shard=4)
    for out in (tmp_path / "a", tmp_path / "b"):
        generate(tiny.model(), data, plan, out, workers=0, batch_size=4, progress=False)
    shards = tmp_path / "a" / "shards"
    whole = (shards / COLUMNS).read_bytes()
    assert whole == (tmp_path / "b" / "shards" / COLUMNS).read_bytes()
    reader = ShardReader(tmp_path / "a")
    assert is_mapped(reader)
    assert len(reader) == 12
    for i in range(6):
        assert reader.index[i].xxh3 is not None
        own = data.image(i)
        start, counterfactuals, nulls = reader.by_pixels.find(reader.lookup(own))
        assert (counterfactuals, nulls) == (1, 1)
        assert {reader.index[int(row)].source_key for row in reader.by_pixels.rows[start : start + 2]} == {data.key(i)}
        assert reader.lookup(own) == sample_hash(own)
    report = verify(shards, plan)
    assert report.ok, str(report)
    assert report.notes == ()
    (shards / COLUMNS).unlink()
    before = os.stat(shards / "cf-train-000000.tar").st_mtime_ns
    generate(tiny.model(), data, plan, tmp_path / "a", workers=0, batch_size=4, progress=False)  # nothing to make
    assert (shards / COLUMNS).read_bytes() == whole
    assert os.stat(shards / "cf-train-000000.tar").st_mtime_ns == before
    with open_destination(tmp_path / "a").session(overwrite=True):
        assert not (shards / COLUMNS).exists()


def test_shards_without_the_field_are_read_as_ever(tmp_path: Path) -> None:
    row = write_shard(tmp_path, "cf-train-000000.tar", [made(0, 0, hashed=False)], "p", "m")
    assert b"xxh3" not in (tmp_path / row.index).read_bytes()
    reader = ShardReader(tmp_path)
    assert reader.lookup(picture(0, 1)) == int(pixel_digest(picture(0, 1))[:16], 16)
    assert reader.index[0].xxh3 is None
