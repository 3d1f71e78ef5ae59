"""index.bin: mapped and cached, never trusted when it is bad; and readers over it, in other processes and over files that change."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.column_samples import arrays, committed, is_mapped, made, published

from cfaug.errors import ShardError
from cfaug.offline import ShardReader, verify
from cfaug.offline.format import COLUMNS
from cfaug.offline.read import key_hash
from cfaug.offline.reading import column_file, columns, descriptors, indices
from cfaug.offline.reading.column_file import BYTES, HEADER, publish_columns
from cfaug.offline.reading.columns import Columns
from cfaug.offline.storage import LocalStorage

LOG = "cfaug.offline.reading.column_file"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of six samples of four sources, with index.bin; the third sample of a source is a null intervention."""
    return published(tmp_path, [[made(6 * n + i, (6 * n + i) % 4, i % 3 == 2) for i in range(6)] for n in range(2)])


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


def test_a_record_of_another_sample_and_a_key_written_otherwise(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only an index that another program wrote can have: the reader says so, or reads it as JSON does."""
    reader = ShardReader(shards)
    row = reader.manifest[0]
    path = shards / row.index
    path.write_bytes(path.read_bytes().replace(b'"k0"', b'"k\\u0030"'))
    other = replace(row, index_bytes=path.stat().st_size, index_sha256=sha256(path.read_bytes()).hexdigest())
    held = indices.Indices(reader.storage, [other])
    assert [held.key(i) for i in range(2)] == ["k0", "k1"]
    monkeypatch.setattr(indices.Indices, "key", lambda self, i: f"k{i + 1}")
    for read in (reader.record, reader.sample):
        with pytest.raises(ShardError, match=r"sample 'k8': its record says key 'k7'"):
            read(7)


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
    none = {name: column if name == "lookup" else column[:0] for name, column in held.items()}
    for bad in ({**held, "key_rows": held["key_rows"] + 1}, {**held, "pixel_rows": held["pixel_rows"] + 12}, none):
        column_file.write_columns(shards / COLUMNS, Columns(**bad), reader.fingerprint)
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


def test_sets_that_share_a_cache_have_a_file_each(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / COLUMNS).unlink()
    others = committed(tmp_path / "others", [[made(i, i % 4) for i in range(12)]])
    monkeypatch.setattr(column_file, "IN_MEMORY", 11)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nulls = [ShardReader(place).nulls.sum() for place in (shards, others)]
    monkeypatch.setattr(column_file, "build", None)  # the second time nothing is built
    assert [ShardReader(place).nulls.sum() for place in (shards, others)] == nulls == [4, 0]


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
    held = {one.name: getattr(reader._columns, one.name) for one in fields(Columns)}
    turned = Columns(**{**held, "sizes": held["sizes"] ^ np.uint64(1 << columns.NULL)})
    column_file.write_columns(shards / COLUMNS, turned, reader.fingerprint)
    whole = (shards / COLUMNS).read_bytes()
    (shards / COLUMNS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of these shards, another, and damaged
    assert pickle.loads(sent).nulls.tolist() == reader.nulls.tolist()
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
