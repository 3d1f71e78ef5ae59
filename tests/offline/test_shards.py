"""The on-disk contract under faults: every truncation and every flipped bit is seen, and named by shard and key."""

from __future__ import annotations

import io
import json
import pickle
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfaug.errors import ShardError, UsageError
from cfaug.offline import ShardReader, encode_sample, verify, write_shard
from cfaug.offline.commit import Destination, open_destination
from cfaug.offline.format import ManifestRow, Sample
from cfaug.offline.scan import scan
from cfaug.offline.storage import open_storage
from cfaug.offline.write_shard import TarFile, stage_shard


def sample(i: int, channels: int = 3, **changes: object) -> Sample:
    rng = np.random.default_rng(i)
    key = str(changes.get("key", f"train-{i:09d}"))
    record = {
        "schema": 1, "key": key, "source_key": f"source {i // 2}.png", "source_digest": "0" * 64, "split": "train",
        "do": {} if i % 4 == 3 else {"colour": "red"}, "attributes": {"colour": "red", "thickness": 0.5},
        "factual": {"colour": "blue", "thickness": 0.5}, "target": "1", "seed": i, "replica": i % 2, "model": "m",
        "quality": {"change_l1": 0.25}, **changes,
    }  # fmt: skip
    return Sample(key, rng.integers(0, 256, (9, 7, channels), dtype=np.uint8), record)


@pytest.fixture
def shards(tmp_path) -> Path:
    for k in range(2):
        write_shard(tmp_path, f"cf-train-{k:06d}.tar", [sample(8 * k + i) for i in range(8)], "p", "m")
    return tmp_path


@pytest.mark.parametrize(("bound", "value"), [("MAX_SAMPLES", 7), ("MAX_LINE", 300), ("MAX_INDEX_BYTES", 2000)])
def test_what_readers_would_refuse_is_not_written(tmp_path, monkeypatch, bound: str, value: int) -> None:
    monkeypatch.setattr(sys.modules["cfaug.offline.write_shard"], bound, value)
    with pytest.raises(ShardError, match="plan smaller shards"):
        write_shard(tmp_path, "cf-train-000000.tar", [sample(i) for i in range(8)], "p", "m")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path, channels: int) -> None:
    samples = [sample(i, channels) for i in range(8)]
    row = write_shard(tmp_path / "shards", "cf-train-000000.tar", samples, "p", "m")
    assert row.count == 8
    for place in (tmp_path, tmp_path / "shards"):  # a run, or its shards
        reader = pickle.loads(pickle.dumps(ShardReader(place)))
        assert reader.keys == [s.key for s in samples]
        assert len(reader) == 8
        for i, expected in enumerate(samples):
            found = reader.sample(i)
            assert found.record == expected.record
            np.testing.assert_array_equal(found.image, expected.image)
            assert reader.index[i].null == (i % 4 == 3)
        report = verify(place)
        assert report.ok, str(report)
        assert report.counts == {"shards": 1, "samples": 8, "null": 2, "sources": 4, "bytes": row.bytes}


def test_same_samples_same_bytes_and_a_plain_ustar(tmp_path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, "cf-train-000000.tar", [sample(i) for i in range(8)], "p", "m")
    for name in ("cf-train-000000.tar", "cf-train-000000.index.jsonl", "manifest.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a" / "cf-train-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name.split(".")[1] for m in members] == ["json", "png"] * 8
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "cfaug", "cfaug", 0o444)}
    assert (tmp_path / "a" / "cf-train-000000.tar").read_bytes()[257:265] == b"ustar\x0000"


@pytest.mark.parametrize("image", ["png", "png-stored", "webp"])
@pytest.mark.parametrize("place", ["memory://run-{}", "file://{}/copy", "{}/copy"])
def test_shards_are_read_wherever_they_are(tmp_path, image: str, place: str) -> None:
    """The same bytes behind a URL, the run's or its shards'; also one whose images are lossless WebP."""
    written, samples, field = open_destination(tmp_path), [sample(i) for i in range(8)], image.removesuffix("-stored")
    with written.session(), written.staging() as staging:
        row = written.commit(stage_shard(staging, "cf-train-000000.tar", samples, "p", "m", image=image))
        written.publish([row.name], {})
    copy = open_storage(place.format(tmp_path))
    for name in (row.name, row.index, "manifest.jsonl"):
        copy.within("shards").write(name, written.storage.read(name))
    for url in (copy.url, copy.within("shards").url):
        reader = pickle.loads(pickle.dumps(ShardReader(url)))
        found = [reader.sample(i) for i in range(8)]
        assert [(row.image_field, row.image) for row in reader.index] == [
            (field, getattr(r, field)) for r in reader.index
        ]
        for mine, theirs in zip(found, samples, strict=True):
            assert (mine.key, mine.record) == (theirs.key, theirs.record)
            np.testing.assert_array_equal(mine.image, theirs.image)
        assert verify(url).ok, str(verify(url))
    scanned = list(scan(f"{copy.within('shards').url}/{row.name}"))
    assert [one.key for one in scanned] == [one.key for one in samples]
    np.testing.assert_array_equal(scanned[7].image, samples[7].image)
    whole = copy.within("shards").read(row.name)
    copy.within("shards").write(row.name, whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'train-000000000'"):
        ShardReader(copy.url).sample(0)
    assert "sample 'train-000000000'" in verify(copy.url).problems[0]
    copy.within("shards").write(row.name, whole[:-1])
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar: expected \d+ bytes"):
        ShardReader(copy.url)
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar.*expected \d+ more zero bytes"):
        list(scan(f"{copy.within('shards').url}/{row.name}"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(0, key="a.b"), "a.b"),
        (sample(0, key="a/b"), "a/b"),
        (sample(0, key="k" * 96), "95"),
        (Sample("other", sample(0).image, sample(0).record), "expected its own key in its record"),
        (Sample("train-000000000", np.zeros((4, 4, 4), np.uint8), sample(0).record), "uint8 image"),
        (Sample("train-000000000", np.zeros((4, 4, 3), np.float32), sample(0).record), "float32"),
        (sample(0, quality={"change_l1": float("nan")}), "finite"),
        (sample(0, seed=1.5), "seed"),
        (sample(0, schema=2), "upgrade"),
        (sample(0, extra=[1]), "extra"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(tmp_path, bad: Sample, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        encode_sample(bad)
    (tmp_path / "staged").mkdir()
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path, "cf-train-000000.tar", [sample(1), bad], "p", "m")
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")} == {"staged"}
    with pytest.raises(ShardError, match=message):  # staging alone, with nobody to sweep up after it
        stage_shard(tmp_path / "staged", "cf-train-000000.tar", [sample(1), bad], "p", "m")
    assert not list((tmp_path / "staged").iterdir())


def test_the_longest_key_is_stored(tmp_path) -> None:
    write_shard(tmp_path, "cf-train-000000.tar", [sample(0, key="k" * 95)], "p", "m")
    assert ShardReader(tmp_path).record(0)["key"] == "k" * 95
    assert verify(tmp_path).ok


def test_fields_must_not_vary_within_a_shard(tmp_path) -> None:
    odd = sample(1, attributes={"colour": "red"})
    with pytest.raises(ShardError, match=r"train-000000001.*expected the attributes and types"):
        write_shard(tmp_path, "cf-train-000000.tar", [sample(0), odd], "p", "m")
    with pytest.raises(ShardError, match="expected samples with keys that differ"):
        write_shard(tmp_path, "cf-train-000000.tar", [sample(0), sample(0)], "p", "m")


def test_a_torn_manifest_line_is_ignored_then_replaced(shards) -> None:
    path = shards / "manifest.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 60, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert len(ShardReader(shards)) == 8
        report = verify(shards)
        assert not report.ok
        assert any("cf-train-000001.tar: expected only files of the manifest" in p for p in report.problems)
        write_shard(shards, "cf-train-000001.tar", [sample(8 + i) for i in range(8)], "p", "m")
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 40)  # a file extended before its data reached the disk
    assert len(ShardReader(shards)) == 16
    assert len(Destination(open_storage(shards)).committed()) == 2


def test_what_the_manifest_does_not_vouch_for_is_not_read(shards) -> None:
    (shards / "cf-train-000007.tar").write_bytes((shards / "cf-train-000000.tar").read_bytes())
    half = f"cf-train-000009.tar.{socket.gethostname()}.{2**22 + 1}.ab.partial"  # no process has this number
    (shards / half).write_bytes(b"half")
    assert len(ShardReader(shards)) == 16
    report = verify(shards)
    assert [p for p in report.problems if "cf-train-000007.tar" in p]
    assert report.leftovers == (half,)
    (shards / "cf-train-000007.tar").unlink()
    assert verify(shards).ok
    with Destination(open_storage(shards)).session():
        pass
    assert verify(shards).leftovers == ()


def test_a_repeated_key_and_a_second_run_are_refused(tmp_path) -> None:
    write_shard(tmp_path / "a", "cf-train-000000.tar", [sample(0)], "p", "m")
    write_shard(tmp_path / "a", "cf-train-000001.tar", [sample(0)], "p", "m")
    with pytest.raises(ShardError, match=r"cf-train-000001\.tar, sample number 0: its key is also that of"):
        ShardReader(tmp_path / "a")
    assert any("the key is also in" in p for p in verify(tmp_path / "a").problems)
    write_shard(tmp_path / "b", "cf-train-000000.tar", [sample(0)], "p", "m")
    with pytest.raises(UsageError, match="expected shards with plan=another plan, as this run makes them, got plan=p"):
        write_shard(tmp_path / "b", "cf-train-000001.tar", [sample(1)], "another plan", "m")
    row = write_shard(tmp_path / "c", "cf-train-000001.tar", [sample(1)], "another plan", "m")
    with (tmp_path / "b" / "manifest.jsonl").open("ab") as manifest:
        manifest.write(row.line())
    with pytest.raises(ShardError, match="of a different run"):
        ShardReader(tmp_path / "b")


def test_no_other_codec_and_no_other_path_is_reached(tmp_path) -> None:
    """Consistent digests do not make content safe: an EPS called .png stays undecoded, a pickle stays bytes."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(touch) run\n"
    webp = io.BytesIO()
    Image.new("RGB", (8, 8)).save(webp, "WEBP")
    huge = io.BytesIO()
    Image.new("L", (9000, 9000)).save(huge, "PNG")
    for n, content in enumerate((eps, webp.getvalue(), huge.getvalue(), pickle.dumps(print))):
        directory = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["cfaug.offline.write_shard"], "encode_image", lambda *_, content=content: content)
            write_shard(directory, "cf-train-000000.tar", [sample(0)], "p", "m")
        with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'train-000000000'"):
            ShardReader(directory).image(0)
        assert not verify(directory).ok
    row = ManifestRow("../x.tar", 1, 0, "0" * 64, "x.index.jsonl", 0, "0" * 64, "p", "m", {})
    (tmp_path / "manifest.jsonl").write_bytes(row.line())
    with pytest.raises(ShardError, match="manifest row"):
        ShardReader(tmp_path)
    future = {**json.loads(row.line()), "format": 2}
    (tmp_path / "manifest.jsonl").write_bytes(json.dumps(future).encode() + b"\n")
    with pytest.raises(ShardError, match="upgrade"):
        ShardReader(tmp_path)


def test_a_tar_that_other_readers_would_misread_is_a_problem(tmp_path, monkeypatch) -> None:
    """A third member between two samples: webdataset would see another sample, so we do not read the shard either."""
    add = TarFile.add

    def odd(tar: TarFile, members: list[tuple[str, bytes]]) -> None:
        add(tar, [*members, (members[-1][0].replace(".png", ".zz.pyd"), b"\x80\x04.")])

    monkeypatch.setattr(TarFile, "add", odd)
    write_shard(tmp_path, "cf-train-000000.tar", [sample(0), sample(1)], "p", "m")
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'train-000000001'.*elsewhere in the tar"):
        ShardReader(tmp_path)
    assert any("zz.pyd" in p for p in verify(tmp_path).problems)
