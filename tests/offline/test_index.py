"""The index says what the shards say, from memory and from its file; whatever is wrong with the file, it is not used."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.sourced_samples import committed, is_mapped, made, picture, published
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfaug.causal.intervention import do
from cfaug.data import pixel_digest
from cfaug.data.pixel_hashes import sample_hash
from cfaug.errors import ShardError
from cfaug.offline import Plan, PlanRow, ShardReader, generate, index, verify, write_shard
from cfaug.offline.commit import open_destination
from cfaug.offline.format import INDEX_FILE, SPLITS, IndexRow, Member, Sample, SourceHashes
from cfaug.offline.index import ENTRY, content_of, key_hash, key_hashes, publish_index
from cfaug.offline.read import SourceTable
from cfaug.offline.storage import LocalStorage, open_storage

ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(SPLITS), st.booleans()), min_size=1, max_size=14
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of six samples of four sources, with index.npy; every third sample is a null intervention."""
    return published(tmp_path, [[made(6 * n + i, (6 * n + i) % 4, i % 3 == 2) for i in range(6)] for n in range(2)])


@settings(max_examples=12, deadline=None)
@given(rows=ROWS, per_shard=st.integers(1, 6), image=st.sampled_from(["png", "webp"]), every=st.booleans())
def test_the_index_says_what_the_samples_say(
    rows: list[tuple[int, bool, str, bool]], per_shard: int, image: str, every: bool
) -> None:
    samples = [made(i, s, null, split, hashed or every) for i, (s, null, split, hashed) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as place:
        parts = [samples[at : at + per_shard] for at in range(0, len(samples), per_shard)]
        found = committed(Path(place), parts, image)
        built = ShardReader(found)
        publish_index(LocalStorage(found), built.manifest)
        mapped = ShardReader(found)
        assert (is_mapped(built), is_mapped(mapped)) == (False, True)
        assert mapped._index.entries.tobytes() == built._index.entries.tobytes()
        agrees(mapped, samples)
        assert list(built.index) == list(mapped.index)


def agrees(reader: ShardReader, samples: list[Sample]) -> None:
    assert reader.keys == [one.key for one in samples]
    assert reader.nulls.tolist() == [not one.record["do"] for one in samples]
    assert [SPLITS[code] for code in reader.splits] == [one.record["split"] for one in samples]
    for i, one in enumerate(samples):
        row, read = reader.index[i], reader.sample(i)
        assert (row.key, row.source_key, row.null) == (one.key, one.record["source_key"], not one.record["do"])
        assert (read.key, read.record) == (one.key, one.record)
        assert reader.record(i) == one.record
        for image in (read.image, np.asarray(reader.picture(i)), reader.image(i)):
            np.testing.assert_array_equal(image, one.image)
        assert (row.xxh3 is None) == (one.source is None)
    sources = sorted({one.record["source_key"] for one in samples})
    number = {key: int(key.split()[-1].removesuffix(".png")) for key in sources}
    by_pixels = {key: reader.lookup(picture(number[key], 1)) for key in sources}
    for table, hashes in ((reader.by_key, {key: key_hash(key) for key in sources}), (reader.by_pixels, by_pixels)):
        assert {key: listed(table, hashes[key]) for key in sources} == {key: rows_of(samples, key) for key in sources}
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


def test_images_with_the_same_grid_are_told_apart(tmp_path: Path) -> None:
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


def test_a_source_of_two_images_and_a_repeated_key_are_refused(tmp_path: Path) -> None:
    changed = committed(tmp_path / "a", [[made(0, 0)], [made(1, 0, of=picture(9, 9))]])
    two = r"cf-train-000000\.tar, sample number 0 and cf-train-000001\.tar, sample number 0: .* got two different ones"
    with pytest.raises(ShardError, match=two):
        ShardReader(changed)
    repeated = committed(tmp_path / "b", [[made(0, 0), made(1, 0)], [made(1, 0), made(2, 1)]])
    with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample number 0: its key is also that of"):
        ShardReader(repeated)
    alike = [replace(made(i, i), source=SourceHashes(3, 4)) for i in range(2)]  # not of one key: no contradiction
    assert len(ShardReader(committed(tmp_path / "c", [alike]))) == 2


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("image", ["png", "webp"])
def test_every_flipped_byte_of_a_payload_is_found(tmp_path: Path, image: str, hashed: bool) -> None:
    place = published(tmp_path, [[made(i, i, hashed=hashed) for i in range(2)]], image)
    tar = place / "cf-train-000000.tar"
    whole, row, reader = tar.read_bytes(), ShardReader(place).index[1], ShardReader(place)
    for member, reads in ((row.image, ("picture", "sample")), (row.json, ("record", "sample"))):
        for at in range(member.offset, member.offset + member.size):
            with tar.open("r+b") as file:
                file.seek(at)
                file.write(bytes([whole[at] ^ 16]))
            for read in reads:
                with pytest.raises(
                    ShardError, match=r"sample 'k1': expected the bytes the index vouches for, got different"
                ):
                    getattr(reader, read)(1)
            with tar.open("r+b") as file:
                file.seek(at)
                file.write(whole[at : at + 1])
    reader.sample(0), reader.sample(1)


def test_a_wrong_xxh3_in_an_index_is_refused_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = made(0, 0)
    with monkeypatch.context() as patch:
        patch.setattr("xxhash.xxh3_64_intdigest", lambda data: 5)
        place = committed(tmp_path, [[sample]])
    with pytest.raises(ShardError, match="vouches"):
        ShardReader(place).picture(0)
    assert any("sample 'k0': expected an image with the xxh3" in problem for problem in verify(place).problems)


@pytest.mark.parametrize("xxh3", ['["1"]', '["' + "0" * 16 + '"]', "[1,2,3]", '"' + "0" * 16 + '"', "null", "{}"])
def test_an_index_row_with_a_malformed_xxh3_is_refused(xxh3: str) -> None:
    row = IndexRow("k", "s", "d", "train", False, Member(512, 1, "0" * 64), Member(1536, 1, "0" * 64))
    line = row.line().rstrip(b"}\n") + b',"xxh3":%s}' % xxh3.encode()
    with pytest.raises(ShardError, match="expected an index row"):
        IndexRow.parse(line, "here")


def test_generation_writes_the_index(tmp_path: Path) -> None:
    data = tiny.dataset(6)
    rows = [
        PlanRow(f"k{i}", f"source {i % 6}.png", do() if i >= 6 else do(colour="red"), i, i // 4, i // 6)
        for i in range(12)
    ]
    plan = Plan(rows, samples_per_shard=4)
    for out in (tmp_path / "a", tmp_path / "b"):
        generate(tiny.model(), data, plan, out, workers=0, batch_size=4, progress=False)
    place = tmp_path / "a" / "shards"
    whole = (place / INDEX_FILE).read_bytes()
    assert whole == (tmp_path / "b" / "shards" / INDEX_FILE).read_bytes()
    reader = ShardReader(tmp_path / "a")
    assert is_mapped(reader)
    for i in range(6):
        start, counterfactuals, nulls = reader.by_pixels.find(reader.lookup(data.image(i)))
        assert (counterfactuals, nulls) == (1, 1)
        assert {reader.index[int(row)].source_key for row in reader.by_pixels.rows[start : start + 2]} == {data.key(i)}
    report = verify(place, plan)
    assert report.ok, str(report)
    assert report.notes == ()
    (place / INDEX_FILE).unlink()
    before = os.stat(place / "cf-train-000000.tar").st_mtime_ns
    generate(tiny.model(), data, plan, tmp_path / "a", workers=0, batch_size=4, progress=False)  # nothing to make
    assert (place / INDEX_FILE).read_bytes() == whole
    assert os.stat(place / "cf-train-000000.tar").st_mtime_ns == before
    with open_destination(tmp_path / "a").session(overwrite=True):
        assert not (place / INDEX_FILE).exists()


def test_rows_without_xxh3_are_looked_up_by_sha256(tmp_path: Path) -> None:
    row = write_shard(tmp_path, "cf-train-000000.tar", [made(0, 0, hashed=False)], "p", "m")
    assert b"xxh3" not in (tmp_path / row.index).read_bytes()
    reader = ShardReader(tmp_path)
    assert reader.lookup(picture(0, 1)) == int(pixel_digest(picture(0, 1))[:16], 16)


def test_the_file_is_an_array_of_64_bytes_per_sample(shards: Path) -> None:
    """What any numpy opens, and maps."""
    entries = np.load(shards / INDEX_FILE, mmap_mode="r")
    assert isinstance(entries, np.memmap)
    assert entries.shape == (12,)
    assert entries.dtype == ENTRY
    assert ENTRY.itemsize == 64
    assert (entries["flags"] & index.NULL).sum() == 4


def test_samples_count_from_the_end_and_end(shards: Path) -> None:
    reader = ShardReader(shards)
    assert (reader.keys[-1], reader.index[-2].key, reader.record(-1)["key"]) == ("k11", "k10", "k11")
    assert [row.key for row in reader.index[4:8]] == ["k4", "k5", "k6", "k7"]
    np.testing.assert_array_equal(reader.image(-12), reader.image(0))
    assert reader.where(np.int64(7)) == "cf-train-000001.tar, sample 'k7'"  # type: ignore[arg-type]
    for read in (reader.picture, reader.record, reader.sample, reader.where, reader.index.__getitem__):
        for i in (12, -13):
            with pytest.raises(IndexError):
                read(i)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "of different shards": lambda whole: whole.replace(b'{"shards":"', b'{"shards":"0', 1),
    "a different lookup": lambda whole: whole.replace(b"sample_hash", b"pixels_hash"),
    "no magic": lambda whole: b"x" + whole[1:],
    "a pickle": lambda whole: pickle.dumps(print),
    "an archive": lambda whole: b"PK\3\4" + whole,
    "a different type": lambda whole: whole.replace(b"<u8", b"<i8"),
    "cut": lambda whole: whole[:-1],
    "cut in the array": lambda whole: whole[:300],
    "half a header": lambda whole: whole[:60],
    "empty": lambda whole: b"",
    "longer": lambda whole: whole + b"\0",
    "fewer samples": lambda whole: whole.replace(b"(12,)", b"(11,)"),
    "more samples": lambda whole: whole.replace(b"(12,)", b"(99,)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_right_is_not_trusted(shards: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    truth, whole = ShardReader(shards)._index.entries.tobytes(), (shards / INDEX_FILE).read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    (shards / INDEX_FILE).write_bytes(damaged)
    with caplog.at_level(logging.INFO):
        reader = ShardReader(shards)
    assert not is_mapped(reader)
    assert reader._index.entries.tobytes() == truth
    (message,) = caplog.messages
    assert INDEX_FILE in message
    assert "\n" not in message
    report = verify(shards)
    assert report.ok
    assert any(INDEX_FILE in note for note in report.notes)
    publish_index(LocalStorage(shards), reader.manifest)
    assert (shards / INDEX_FILE).read_bytes() == whole


def test_every_flipped_bit_of_the_file_is_seen(shards: Path) -> None:
    whole = (shards / INDEX_FILE).read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(0, len(whole), 7), *range(len(whole) - 40, len(whole))]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        (shards / INDEX_FILE).write_bytes(flipped)
        assert not is_mapped(ShardReader(shards)), at


@pytest.mark.parametrize("field", ["key_row", "pixel_row", "record_bytes", "image_bytes"])
def test_a_number_out_of_bounds_is_seen_in_spite_of_digests(shards: Path, field: str) -> None:
    """Whoever can write the directory can write digests too: no read goes elsewhere, or takes memory, for that."""
    reader = ShardReader(shards)
    entries = reader._index.entries.copy()
    entries[field][5] = 1 << 31
    (shards / INDEX_FILE).write_bytes(content_of(replace(reader._index, entries=entries), reader.fingerprint))
    assert not is_mapped(ShardReader(shards))


def test_a_file_of_different_shards_is_not_used(shards: Path, tmp_path: Path) -> None:
    other = committed(tmp_path / "other", [[made(i, i % 4) for i in range(12)]])
    shutil.copy(shards / INDEX_FILE, other / INDEX_FILE)
    reader = ShardReader(other)
    assert not is_mapped(reader)
    assert not reader.nulls.any()


def test_a_truncated_shard_is_seen_when_the_index_is_mapped(shards: Path) -> None:
    for name in ("cf-train-000001.tar", "cf-train-000001.index.jsonl"):
        whole = (shards / name).read_bytes()
        (shards / name).write_bytes(whole[:-1])
        with pytest.raises(ShardError, match=rf"cf-train-000001\.tar.*expected {len(whole)} bytes"):
            ShardReader(shards)
        (shards / name).unlink()
        with pytest.raises(ShardError, match=r"cf-train-000001\.tar.*no such file"):
            ShardReader(shards)
        (shards / name).write_bytes(whole)


def test_an_object_store_has_an_index_too(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = open_storage("memory://indexed/shards")
    for path in shards.iterdir():
        if path.is_file() and path.name != INDEX_FILE:
            copy.write(path.name, path.read_bytes())
    manifest = ShardReader(shards).manifest
    for path in shards.glob("commits/*"):
        copy.write(f"commits/{path.name}", path.read_bytes())
    publish_index(copy, manifest)
    assert copy.read(INDEX_FILE) == (shards / INDEX_FILE).read_bytes()
    monkeypatch.setattr(index, "build_index", None)  # nothing is built
    for reader in (ShardReader("memory://indexed"), pickle.loads(pickle.dumps(ShardReader("memory://indexed")))):
        assert _read(reader)[:3] == _read(ShardReader(shards))[:3]


def _read(reader: ShardReader) -> tuple[list[str], bytes, tuple[int, ...], bool]:
    images = b"".join(reader.image(i).tobytes() for i in range(len(reader)))
    return reader.keys, images, tuple(reader.by_key.find(key_hash(reader.index[0].source_key))), is_mapped(reader)


def _into(queue: Any, readers: list[ShardReader]) -> None:
    queue.put([_read(reader) for reader in readers])


@pytest.mark.parametrize(("method", "count"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)])
def test_other_processes_read_the_same(shards: Path, method: str, count: int) -> None:
    mapped = ShardReader(shards)
    (shards / INDEX_FILE).rename(shards / "aside")
    readers = [mapped, ShardReader(shards)]
    (shards / "aside").rename(shards / INDEX_FILE)
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


def test_a_pickled_reader_maps_the_same_file(shards: Path) -> None:
    reader = ShardReader(shards)
    expected, sent = _read(reader), pickle.dumps(reader)
    copy = pickle.loads(sent)
    assert is_mapped(copy)
    assert _read(copy) == expected
    many = published(shards.parent / "many", [[made(i, i % 4) for i in range(500)]])
    assert len(pickle.dumps(ShardReader(many))) < len(sent) + 2000  # nothing that grows with the samples
    os.replace(many / INDEX_FILE, shards / INDEX_FILE)
    again = pickle.loads(sent)  # the file is a different one now, so the copy does without
    assert not is_mapped(again)
    assert _read(again)[:3] == expected[:3]
    (shards / INDEX_FILE).unlink()
    assert _read(pickle.loads(sent))[:3] == expected[:3]
    assert _read(reader) == expected  # a reader that has it mapped keeps it


def test_few_files_stay_open(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.read.OPEN_FILES", 1)
    reader = ShardReader(shards)
    for i in (0, 1, 11, 10, 0):
        reader.picture(i)
        assert _open_in(shards) == 1
    del reader
    gc.collect()
    assert _open_in(shards) == 0


def _open_in(directory: Path) -> int:
    """How many tars of `directory` this process has open."""
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return sum(path.startswith(str(directory)) and path.endswith(".tar") for path in opened)


def test_a_shard_removed_while_training_runs(shards: Path) -> None:
    reader = ShardReader(shards)
    held = reader.image(0)
    for path in shards.glob("*.tar"):
        path.unlink()
    np.testing.assert_array_equal(reader.image(0), held)  # through the open file
    for read in (reader.picture, reader.record, reader.sample):
        with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample 'k7': .* gone now; put it back") as caught:
            read(7)
        assert "\n" not in str(caught.value)
    shutil.rmtree(shards)
    with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample .*gone now; put it back"):
        reader.picture(11)


def _wrong(reader: ShardReader, seed: int) -> int:
    """How many of many random reads gave a different sample than was asked for."""
    drawn = np.random.default_rng(seed).integers(0, len(reader), 400).tolist()
    return sum(reader.record(i)["key"] != f"k{i}" for i in drawn)


def _in_threads(reader: ShardReader) -> list[int]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda seed: _wrong(reader, seed), range(4)))


def _in_forks(reader: ShardReader) -> list[int]:
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    others = [context.Process(target=lambda seed=seed: queue.put(_wrong(reader, seed))) for seed in range(3)]
    for other in others:
        other.start()
    found = [_wrong(reader, 9), *(queue.get(timeout=60) for _ in others)]
    for other in others:
        other.join()
    return found


@pytest.mark.parametrize("together", [_in_threads, _in_forks])
@pytest.mark.parametrize("files", [1, 128])
def test_readers_at_once_share_no_position(
    shards: Path, together: Callable[[ShardReader], list[int]], files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked processes have the same open file with one position, as threads have; few open files close under readers."""
    monkeypatch.setattr("cfaug.offline.read.OPEN_FILES", files)
    reader = ShardReader(shards)
    reader.record(0), reader.record(11)  # open before anybody is forked
    assert together(reader) == [0] * 4
