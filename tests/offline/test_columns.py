"""The reader's columns: they say what the parsed index says, from memory and from a file, and a bad file is never trusted."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfaug.causal.intervention import do
from cfaug.data import pixel_digest
from cfaug.data.lookup import pixels_hash, sample_hash
from cfaug.errors import ShardError
from cfaug.offline import Plan, PlanRow, ShardReader, generate, verify, write_shard
from cfaug.offline.destinations.destination import open_destination
from cfaug.offline.destinations.staging import stage_shard
from cfaug.offline.destinations.storage import LocalStorage
from cfaug.offline.format import COLUMNS, SPLITS, IndexRow, Member, Quick, Sample, SourceHashes
from cfaug.offline.reading import column_file, columns, descriptors, indices, plain
from cfaug.offline.reading.column_file import BYTES, HEADER, publish_columns
from cfaug.offline.reading.columns import Columns
from cfaug.offline.reading.plain import parse_row
from cfaug.offline.shards import SourceTable, key_hash, key_hashes

LOG = "cfaug.offline.reading.column_file"


def picture(*seed: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def made(
    i: int,
    source: int,
    null: bool = False,
    split: str = "train",
    hashed: bool = True,
    of: np.ndarray | None = None,
    key: str | None = None,
) -> Sample:
    """Sample `i` of source `source`, whose pixels are `of`."""
    of = picture(source, 1) if of is None else of
    record = {
        "schema": 1, "key": f"k{i}", "source_key": f"source \u00fc {source}.png" if key is None else key,
        "source_digest": pixel_digest(of), "split": split, "do": {} if null else {"colour": "red"}, "attributes": {},
        "factual": {}, "target": "1", "seed": i, "replica": 0, "model": "m", "quality": {},
    }  # fmt: skip
    hashes = SourceHashes(sample_hash(of), pixels_hash(of)) if hashed else None
    return Sample(f"k{i}", picture(i, 2), record, hashes)


def committed(place: Path, shards: list[list[Sample]], image: str = "png") -> Path:
    destination = open_destination(place)
    with destination.session(), destination.staging() as staging:
        for n, samples in enumerate(shards):
            destination.commit(stage_shard(staging, f"cf-train-{n:06d}.tar", samples, "p", "m", image=image))
    return place / "shards"


def published(place: Path, shards: list[list[Sample]], image: str = "png") -> Path:
    found = committed(place, shards, image)
    publish_columns(LocalStorage(found), ShardReader(found).manifest)
    return found


def arrays(held: Columns) -> list[bytes]:
    return [np.asarray(getattr(held, one.name)).tobytes() for one in fields(Columns)]


def is_mapped(reader: ShardReader) -> bool:
    return isinstance(reader._columns, column_file.Mapped)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of six samples of four sources, with index.bin; the third sample of a source is a null intervention."""
    return published(tmp_path, [[made(6 * n + i, (6 * n + i) % 4, i % 3 == 2) for i in range(6)] for n in range(2)])


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


def test_a_sample_takes_less_than_64_bytes(shards: Path) -> None:
    assert (shards / COLUMNS).stat().st_size == HEADER + 12 * BYTES
    assert BYTES <= 64


def test_indices_and_views_count_from_the_end_and_end(shards: Path) -> None:
    reader = ShardReader(shards)
    assert reader.keys[-1] == "k11"
    assert reader.index[-2].key == "k10"
    assert [row.key for row in reader.index[4:8]] == ["k4", "k5", "k6", "k7"]
    assert reader.record(-1)["key"] == "k11"
    np.testing.assert_array_equal(reader.image(-12), reader.image(0))
    assert reader.where(np.int64(7)) == "cf-train-000001.tar, sample 'k7'"
    for read in (reader.picture, reader.record, reader.sample, reader.where, reader.index.__getitem__):
        for i in (12, -13):
            with pytest.raises(IndexError):
                read(i)
    assert reader.keys != reader.keys[:-1]
    assert reader.by_source() == {f"source \u00fc {s}.png": [i for i in range(12) if i % 4 == s] for s in range(4)}


def test_few_indices_are_kept_and_come_back(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indices, "KEPT", 1)
    reader = ShardReader(shards)
    assert [reader.keys[i] for i in (0, 11, 1, 10)] == ["k0", "k11", "k1", "k10"]
    assert len(reader._indices._kept) == 1
    path = shards / "cf-train-000000.index.jsonl"
    path.write_bytes(path.read_bytes().replace(b"train", b"tra1n"))
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar: its index .* is not the one in the manifest"):
        reader.index[0]


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


DAMAGES = {
    "stale": lambda whole: whole[:24] + bytes(32) + whole[56:],
    "another layout": lambda whole: whole[:8] + b"\2" + whole[9:],
    "no magic": lambda whole: b"x" + whole[1:],
    "another lookup": lambda whole: whole[:12] + b"\3" + whole[13:],
    "one lookup more": lambda whole: whole[:12] + b"\1" + whole[13:],
    "cut": lambda whole: whole[:-1],
    "header only": lambda whole: whole[:HEADER],
    "half a header": lambda whole: whole[:60],
    "empty": lambda whole: b"",
    "longer": lambda whole: whole + b"\0",
    "fewer samples": lambda whole: whole[:16] + b"\1" + whole[17:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_right_is_not_trusted(shards: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    truth, whole = arrays(ShardReader(shards)._columns), (shards / COLUMNS).read_bytes()
    (shards / COLUMNS).write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.INFO, LOG):
        reader = ShardReader(shards)
    assert not is_mapped(reader)
    assert arrays(reader._columns) == truth
    assert len(caplog.messages) == 1
    assert COLUMNS in caplog.text
    report = verify(shards)
    assert report.ok
    assert any(COLUMNS in note for note in report.notes)
    publish_columns(LocalStorage(shards), reader.manifest)
    assert (shards / COLUMNS).read_bytes() == whole
    assert not any(COLUMNS in note for note in verify(shards).notes)


def test_every_flipped_bit_of_the_file_is_seen(shards: Path) -> None:
    whole = (shards / COLUMNS).read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(72), *rng.integers(HEADER, len(whole), 200).tolist()]
    for at in places:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        (shards / COLUMNS).write_bytes(flipped)
        assert not is_mapped(ShardReader(shards)), at


def test_a_row_that_is_not_there_is_seen_though_the_digest_is_right(shards: Path) -> None:
    """Whoever can write the directory can write digests too; no read goes elsewhere for that."""
    reader = ShardReader(shards)
    held = {one.name: getattr(reader._columns, one.name) for one in fields(Columns)}
    bad = Columns(**{**held, "key_rows": held["key_rows"] + 12})
    column_file.write_columns(shards / COLUMNS, bad, reader.fingerprint)
    assert not is_mapped(ShardReader(shards))


def test_a_file_of_other_shards_is_not_used(shards: Path, tmp_path: Path) -> None:
    other = committed(tmp_path / "other", [[made(i, i % 4) for i in range(12)]])
    shutil.copy(shards / COLUMNS, other / COLUMNS)
    reader = ShardReader(other)
    assert not is_mapped(reader)
    assert not reader.nulls.any()


def test_a_truncated_shard_or_index_is_seen_when_the_file_is_mapped(shards: Path) -> None:
    for name in ("cf-train-000001.tar", "cf-train-000001.index.jsonl"):
        whole = (shards / name).read_bytes()
        (shards / name).write_bytes(whole[:-1])
        with pytest.raises(ShardError, match=rf"cf-train-000001\.tar.*expected {len(whole)} bytes"):
            ShardReader(shards)
        (shards / name).unlink()
        with pytest.raises(ShardError, match=r"cf-train-000001\.tar.*not there"):
            ShardReader(shards)
        (shards / name).write_bytes(whole)


def test_large_sets_without_the_file_are_cached(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    truth = (shards / COLUMNS).read_bytes()
    (shards / COLUMNS).unlink()
    monkeypatch.setattr(column_file, "IN_MEMORY", 11)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert is_mapped(ShardReader(shards))
    (cached,) = (tmp_path / "cache" / "cfaug").glob("*.bin")
    assert cached.read_bytes() == truth
    assert not (shards / COLUMNS).exists()
    cached.write_bytes(truth[:-5])
    assert is_mapped(ShardReader(shards))
    assert "is not used, its size" in caplog.text
    assert cached.read_bytes() == truth
    monkeypatch.setattr(column_file, "build", None)  # the second time nothing is built
    agreed = ShardReader(shards)
    assert agreed.keys == [f"k{i}" for i in range(12)]
    monkeypatch.undo()
    monkeypatch.setattr(column_file, "IN_MEMORY", 11)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be written there
    caplog.clear()
    reader = ShardReader(shards)
    assert not is_mapped(reader)
    assert "could not be kept" in caplog.text
    assert reader.record(3)["key"] == "k3"


def _open_and_count(shards: Path, built: Path, barrier: Any, queue: Any) -> None:
    def counted(*rest: Any) -> Columns:
        with built.open("a") as file:
            file.write("x")
        time.sleep(0.5)
        return columns.build(*rest)

    column_file.build = counted  # in this process
    barrier.wait(60)
    reader = ShardReader(shards)
    queue.put((is_mapped(reader), list(reader.keys)))


def test_ranks_that_open_together_build_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / COLUMNS).unlink()
    monkeypatch.setattr(column_file, "IN_MEMORY", 11)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context: Any = multiprocessing.get_context("fork")
    queue, barrier, built = context.Queue(), context.Barrier(4), tmp_path / "built"
    ranks = [context.Process(target=_open_and_count, args=(shards, built, barrier, queue)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert [queue.get(timeout=60) for _ in ranks] == [(True, [f"k{i}" for i in range(12)])] * 4
    for rank in ranks:
        rank.join()
    assert built.read_text() == "x"


def test_a_process_forked_while_the_columns_are_built_does_not_keep_the_lock(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    with column_file._alone(tmp_path / "lock"):
        worker = context.Process(target=time.sleep, args=(60,))
        worker.start()  # has the same open file
    try:
        with (tmp_path / "lock").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        worker.kill()
        worker.join()


def test_where_nothing_can_be_locked_the_columns_are_built_all_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (shards / COLUMNS).unlink()
    monkeypatch.setattr(column_file, "IN_MEMORY", 11)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fcntl.flock", refused)
    assert is_mapped(ShardReader(shards))


def _read(reader: ShardReader) -> tuple[list[str], bytes, tuple[int, ...], bool]:
    images = b"".join(reader.image(i).tobytes() for i in range(len(reader)))
    return list(reader.keys), images, tuple(reader.by_key.find(key_hash(reader.index[0].source_key))), is_mapped(reader)


def _into(queue: Any, readers: list[ShardReader]) -> None:
    queue.put([_read(reader) for reader in readers])


@pytest.mark.parametrize(("method", "count"), [("fork", 2), ("spawn", 1)])
def test_other_processes_read_the_same(shards: Path, method: str, count: int) -> None:
    mapped = ShardReader(shards)
    (shards / COLUMNS).rename(shards / "aside")
    readers = [mapped, ShardReader(shards)]
    (shards / "aside").rename(shards / COLUMNS)
    expected = [_read(reader) for reader in readers]  # descriptors are open, and a forked process shares them
    assert [one[3] for one in expected] == [True, False]
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    others = [context.Process(target=_into, args=(queue, readers)) for _ in range(count)]
    for other in others:
        other.start()
    found = [queue.get(timeout=60) for _ in others]
    for other in others:
        other.join()
    assert found == [expected] * count
    assert [_read(reader) for reader in readers] == expected


def test_a_pickled_reader_maps_without_hashing_and_holds_no_descriptor(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(shards)
    reader.picture(0), reader.picture(11)
    sent = pickle.dumps(reader)
    with monkeypatch.context() as patch:
        patch.setattr(column_file, "_check", None)
        copy = pickle.loads(sent)
    assert is_mapped(copy)
    assert len(copy._files) == 0
    assert _read(copy) == _read(reader)
    many = published(shards.parent / "many", [[made(i, i % 4) for i in range(500)]])
    assert len(pickle.dumps(ShardReader(many))) < len(sent) + 2000  # nothing that grows with the samples
    column_file.write_columns(shards / COLUMNS, ShardReader(many)._columns, ShardReader(many).fingerprint)
    again = pickle.loads(sent)  # the file is another now, so the copy does without
    assert not is_mapped(again)
    assert _read(again)[:3] == _read(reader)[:3]
    (shards / COLUMNS).unlink()
    assert _read(pickle.loads(sent))[:3] == _read(reader)[:3]
    assert _read(reader)[3]  # who has it mapped keeps it


def test_few_descriptors_stay_open(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "MOST", 1)
    opened: list[str] = []
    whole = os.open

    def counted(path: object, *rest: int) -> int:
        opened.append(Path(str(path)).name)
        return whole(path, *rest)  # type: ignore[call-overload, no-any-return]

    reader = ShardReader(shards)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(descriptors.os, "open", counted)
        for i in (0, 1, 11, 10, 0):
            reader.picture(i)
    assert [name[3:15] for name in opened if name.endswith(".tar")] == ["train-000000", "train-000001", "train-000000"]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del reader
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < before + 1


def test_a_shard_removed_while_training_runs(shards: Path) -> None:
    reader = ShardReader(shards)
    held = reader.image(0)
    (shards / "cf-train-000000.tar").unlink()
    (shards / "cf-train-000001.tar").unlink()
    np.testing.assert_array_equal(reader.image(0), held)  # through the descriptor
    for read in (reader.picture, reader.record, reader.sample):
        with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample 'k7': .* gone now: put it back") as caught:
            read(7)
        assert "\n" not in str(caught.value)
    shutil.rmtree(shards)
    with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample .* gone now: put it back"):
        pickle.loads(pickle.dumps(ShardReader)) and reader.picture(11)


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
        patch.setattr("cfaug.offline.destinations.staging.xxhash.xxh3_64_intdigest", lambda data: 5)
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
    import tiny  # here: it imports torch, and a spawned process imports this file

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
