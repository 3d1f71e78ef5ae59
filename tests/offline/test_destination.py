"""A directory that many processes commit to: no row lost, none twice, nothing half there; whoever is killed, whenever."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
from cfaug.offline.local_commit import LocalDestination
from helpers import committing
from helpers.committing import IDENTITY, claim, commit, name, staged
from helpers.processes import killed_at
from hypothesis import given
from hypothesis import strategies as st

from cfaug.causal.intervention import do
from cfaug.errors import CfaugError, ShardError, StorageError, UsageError
from cfaug.offline import ShardReader, verify
from cfaug.offline import committed as manifest_module
from cfaug.offline.commit import open_destination
from cfaug.offline.committed import read_manifest
from cfaug.offline.format import Sample
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.storage import LocalStorage
from cfaug.offline.write_shard import _Tar, encode_sample, stage_shard


@pytest.fixture
def place(tmp_path) -> LocalDestination:
    return LocalDestination(tmp_path / "shards")


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.glob("cf-*") if p.is_file()}


def lines(directory: Path) -> list[bytes]:
    return sorted((directory / "manifest.jsonl").read_bytes().splitlines(keepends=True))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted single process makes of shards 0..23."""
    place = LocalDestination(tmp_path_factory.mktemp("truth"))
    for number in range(24):
        commit(place, number)
    return place.directory


def failed(place: LocalDestination, number: int, **options: int) -> KeyboardInterrupt | StorageError | None:
    """What went wrong with committing a shard, if anything."""
    try:
        commit(place, number, **options)
    except (KeyboardInterrupt, StorageError) as error:
        return error
    return None


def same_as(directory: Path, truth: Path, numbers: range) -> None:
    wanted = {name(k).removesuffix(".tar") for k in numbers}
    assert digests(directory) == {k: v for k, v in digests(truth).items() if k.split(".")[0] in wanted}
    assert lines(directory) == [line for line in lines(truth) if line.split(b'"')[3].decode()[:-4] in wanted]
    assert not list(directory.glob("*.partial"))
    ShardReader(directory)


def test_out_names_the_runs_directory(tmp_path) -> None:
    destination = open_destination(tmp_path)
    assert destination.storage == LocalStorage(tmp_path / "shards")
    assert open_destination(f"file://{tmp_path}").storage == destination.storage
    assert not destination.one_process
    assert destination.committed() == {}
    assert destination.intact() == {}
    assert not (tmp_path / "shards").exists()  # looking makes nothing


def test_a_relative_place_stays_where_it_was_named(tmp_path, monkeypatch) -> None:
    """A worker may run in another directory, and what lies beside ``.`` has a name too."""
    run = tmp_path / "run"
    run.mkdir()
    rows = [PlanRow(f"k{number}", f"{number}.png", do(), number, number, 0) for number in range(2)]
    plan = Plan(rows, samples_per_shard=1)
    plan.save(run / "plan")
    monkeypatch.chdir(run)
    sent = pickle.dumps(LocalDestination("shards"))
    commit(open_destination("."), 0, plan=plan.digest)
    for there, named in ((run, "."), (run, "shards"), (run / "shards", "."), (run / "plan", "../shards")):
        monkeypatch.chdir(there)
        assert "1 of 2 shards are not there yet" in str(verify(named))
    monkeypatch.chdir(tmp_path)
    commit(pickle.loads(sent), 1, plan=plan.digest)
    assert len(LocalDestination("run/shards").committed()) == 2
    (tmp_path / "link").symlink_to(run)
    for named in (run / "plan", "run/plan", "link/plan", f"file://{tmp_path}/link/plan"):
        Plan.load("run/plan").save(named)  # the same place: writing it anew would begin by removing it
        assert Plan.load(run / "plan") == plan
    plan.save("memory://relative/plan/")
    Plan.load("memory://relative/plan").save("memory://relative/plan/")
    assert Plan.load("memory://relative/plan") == plan


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_locks_are_opened_as_nfs_wants_them(place, monkeypatch, kind: int) -> None:
    """NFSv4 makes byte-range locks of flock: a shared one wants a file open for reading, an exclusive one for writing."""
    flock, seen = fcntl.flock, []

    def of_nfs(handle, how):  # type: ignore[no-untyped-def]
        able = handle.readable() if how & fcntl.LOCK_SH else handle.writable()
        if not able:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        seen.append(how & ~fcntl.LOCK_NB)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with place.session(IDENTITY):
        commit(place, 0)
    assert kind in seen

    def denied(handle, how):  # type: ignore[no-untyped-def]
        if how == kind:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", denied)
    with pytest.raises(CfaugError, match=r"cannot lock .*: not permitted"):
        commit(place, 1)


def test_many_processes_commit_and_no_row_is_lost_or_twice(truth, tmp_path) -> None:
    numbers = list(range(24))
    processes = []
    for k in range(4):
        mine = numbers + numbers[k::2]  # every shard by all four, half of them again
        random.Random(k).shuffle(mine)
        processes.append(committing.started(tmp_path, mine))
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    same_as(tmp_path, truth, range(24))


def test_processes_killed_at_random_lose_nothing_that_was_committed(truth, tmp_path) -> None:
    """Each says what it has committed and is killed soon after, on its way through the next ones."""
    rng = random.Random(0)
    said: set[str] = set()
    before: set[bytes] = set()
    killed = 0
    for k in (1, 2, 4):
        processes = [committing.started(tmp_path, rng.sample(range(24), 24)) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            said |= {name(int(process.stdout.readline())) for _ in range(k)}
        time.sleep(rng.uniform(0, 0.01))
        for process in processes:
            killed += process.poll() is None  # in the midst of its work; on a busy machine one may be through
            process.kill()
            process.wait()
        content = (tmp_path / "manifest.jsonl").read_bytes()
        now = set(content[: content.rfind(b"\n") + 1].splitlines(keepends=True))
        assert before <= now <= set(lines(truth))
        before = now
        assert said <= {row.name for row in read_manifest(LocalStorage(tmp_path))}
    assert killed >= 2
    place = LocalDestination(tmp_path)
    with place.session(IDENTITY):
        for number in range(24):
            if name(number) not in place.intact():
                commit(place, number)
    same_as(tmp_path, truth, range(24))


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("other", [True, False])
def test_whoever_commits_next_repairs_what_a_killed_one_left(truth, tmp_path, torn: bool, other: bool) -> None:
    """`other`: by a process that had read the manifest before, whose knowledge must not be one row too old or too new."""
    for step in range(40):
        place = LocalDestination(tmp_path / f"{step}")
        commit(place, 0)
        status = killed_at(step, ("fsync", "replace", "write", "close"), partial(commit, place, 1), torn)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert {row.name for row in read_manifest(place.storage)} in ({name(0)}, {name(0), name(1)})
        nxt = place if other else LocalDestination(place.directory)
        commit(nxt, 2)
        commit(nxt, 1)
        with nxt.session(IDENTITY):
            pass  # sweeps
        same_as(place.directory, truth, range(3))
    assert step >= 8


def test_interrupts_and_errors_between_any_two_steps_leave_the_shard_whole_or_absent(truth, tmp_path) -> None:
    for kind in (KeyboardInterrupt(), OSError(5, "Input/output error")):
        for step in range(40):
            place, left = LocalDestination(tmp_path / f"{type(kind).__name__}{step}"), [step]
            commit(place, 0)
            with pytest.MonkeyPatch.context() as patch:
                for call in ("fsync", "replace", "write"):
                    real = getattr(os, call)

                    def wrapped(*args: object, real=real, left=left, kind=kind) -> object:  # type: ignore[no-untyped-def]
                        left[0] -= 1
                        if left[0] == -1:
                            raise kind
                        return real(*args)

                    patch.setattr(os, call, wrapped)
                error = failed(place, 1)
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt) or (error.transient and not error.full)
            same_as(place.directory, truth, range(1))
            commit(place, 1)
            same_as(place.directory, truth, range(2))
        assert step >= 6


def test_a_commit_reads_only_what_is_new(place, monkeypatch) -> None:
    parsed: list[str] = []
    parse = manifest_module.ManifestRow.parse
    monkeypatch.setattr(
        manifest_module.ManifestRow, "parse", lambda line, where: parsed.append(where) or parse(line, where)
    )
    other = LocalDestination(place.directory)
    for number in range(6):
        commit(place if number % 3 else other, number)
    # each process has seen each line at most once, its own among them, and lines are numbered in the file
    assert max(parsed.count(where) for where in parsed) == 2
    assert {where.rsplit("line ")[1] for where in parsed} == {"1", "2", "3", "4", "5"}


def test_nobody_waits_while_a_newcomer_reads_the_manifest(place, monkeypatch) -> None:
    """A hundred thousand rows take seconds to parse, in every process once: not under the lock of all commits."""
    for number in range(5):
        commit(place, number)
    parse, under_lock = manifest_module.ManifestRow.parse, []

    def noted(line: bytes, where: str) -> object:
        with (place.directory / ".commit.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                under_lock.append(False)
            except BlockingIOError:
                under_lock.append(True)
        return parse(line, where)

    monkeypatch.setattr(manifest_module.ManifestRow, "parse", noted)
    newcomer = LocalDestination(place.directory)
    with newcomer.session(IDENTITY):
        pass
    commit(LocalDestination(place.directory), 5)
    assert under_lock == [False] * 10


@pytest.mark.parametrize("torn", [False, True])
def test_what_is_taken_back_between_the_look_and_the_lock_is_noticed(truth, place, monkeypatch, torn: bool) -> None:
    """A commit whose fsync fails takes its line back, and somebody may have read it without the lock."""
    commit(place, 0)
    commit(place, 1)
    path = place.directory / "manifest.jsonl"
    newcomer = LocalDestination(place.directory)
    look = newcomer._log.look_ahead

    def then_cut() -> None:
        if torn:
            with path.open("ab") as handle:
                handle.write(b'{"name": "cf-train-000003')
        look()
        assert path.stat().st_size > len(lines(place.directory)[0])  # it has repaired nothing: another may be writing
        os.truncate(path, len(path.read_bytes().splitlines(keepends=True)[0]))

    monkeypatch.setattr(newcomer._log, "look_ahead", then_cut)
    commit(newcomer, 1)
    same_as(place.directory, truth, range(2))


def test_a_look_without_the_lock_repairs_nothing_and_refuses_nothing(truth, place) -> None:
    commit(place, 0)
    path = place.directory / "manifest.jsonl"
    with path.open("ab") as handle:
        handle.write(b'{"name": "cf-train-000001')  # another process is in the middle of its line
    content = path.read_bytes()
    newcomer = LocalDestination(place.directory)
    newcomer._log.look_ahead()
    assert path.read_bytes() == content
    commit(newcomer, 1)
    same_as(place.directory, truth, range(2))
    content = path.read_bytes()
    newcomer = LocalDestination(place.directory)
    for damage, said in ((b"damaged\n", "line 3"), (content[: content.index(b"\n") + 1], "listed twice")):
        path.write_bytes(content + damage)
        newcomer._log.look_ahead()
        with pytest.raises(ShardError, match=said):
            commit(newcomer, 2)
    path.write_bytes(content)  # somebody has mended it
    commit(newcomer, 2)
    same_as(place.directory, truth, range(3))


def test_a_manifest_that_was_replaced_meanwhile_is_read_again(place) -> None:
    """The offset up to which a process has read means nothing in another file, even one of the same inode."""
    for number in range(3):
        commit(place, number)
    path = place.directory / "manifest.jsonl"
    other = LocalDestination(place.directory)
    with other.session(IDENTITY, overwrite=True):
        for number in (5, 6, 7, 8):
            commit(other, number)
    content = path.read_bytes()
    commit(place, 9)
    assert path.read_bytes().startswith(content)
    assert set(place.committed()) == {name(k) for k in (5, 6, 7, 8, 9)}
    with path.open("r+b") as handle:  # in place, longer than before
        lines = handle.read().splitlines(keepends=True)
        handle.seek(0)
        handle.write(b"".join(reversed(lines)))
    commit(place, 10)
    assert set(place.committed()) == {name(k) for k in (5, 6, 7, 8, 9, 10)}


def _holding(directory: Path, how: str) -> subprocess.Popen[bytes]:
    code = f"""
        import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers import committing
        from cfaug.offline.local_commit import LocalDestination
        place = LocalDestination({str(directory)!r})
        with {how}:
            print("in", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    return process


def test_a_second_session_is_refused_and_ranks_share_one(place) -> None:
    other = _holding(place.directory, "place.session(committing.IDENTITY)")
    try:
        for shared in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("cfaug.offline.local_commit.PATIENCE", 0.1)
                with pytest.raises(UsageError, match=rf"pid {other.pid} on .*--out") as caught:
                    claim(place, shared=shared)
            assert "\n" not in str(caught.value)
        commit(place, 0)  # workers of the claim's holder are other processes: they commit
    finally:
        other.kill()
        other.wait()
    rank = _holding(place.directory, "place.session(committing.IDENTITY, shared=True)")
    try:
        with place.session(IDENTITY, shared=True):
            commit(place, 1)
        with pytest.raises(UsageError, match="another process"), place.session(IDENTITY):
            pass
    finally:
        rank.kill()
        rank.wait()
    with place.session(IDENTITY):
        assert place.intact().keys() == {name(0), name(1)}


def test_the_sweep_leaves_what_a_live_process_is_staging(place) -> None:
    how = "place.staging() as there"
    code_staging = _holding(place.directory, f"{how}, (there / 'cf-train-000009.tar.host.1.partial').open('wb') as f")
    partial = place.directory / "cf-train-000009.tar.host.1.partial"
    try:
        with place.session(IDENTITY):
            assert partial.exists()
        assert partial.exists()
    finally:
        code_staging.kill()
        code_staging.wait()
    with place.session(IDENTITY):
        assert not partial.exists()


def test_overwriting(place) -> None:
    commit(place, 0, plan="old")
    commit(place, 1, plan="old")
    (place.directory / "README.md").write_text("of the old run")
    with pytest.raises(UsageError, match=r"holds shards with plan=old, this run has plan=p: .*--overwrite"):
        claim(place)
    with pytest.raises(UsageError, match="plan=old"):
        commit(place, 2)
    assert set(place.committed()) == {name(0), name(1)}
    with place.session(IDENTITY, overwrite=True):
        assert place.committed() == {}
        commit(place, 0)
    assert {p.name for p in place.directory.iterdir() if p.suffix != ".lock" and not p.name.endswith(".lock")} == {
        name(0), "cf-train-000000.index.jsonl", "manifest.jsonl"
    }  # fmt: skip
    (place.directory / "manifest.jsonl").write_bytes(b"damaged\n")
    with pytest.raises(ShardError), place.session(IDENTITY):
        pass
    with place.session(IDENTITY, overwrite=True):
        assert place.committed() == {}


def test_publishing_wants_every_shard(place) -> None:
    commit(place, 0)
    with pytest.raises(ShardError, match=r"1 shards are not committed \(cf-train-000001\.tar\)"):
        place.publish([name(0), name(1)], {"README.md": b"x"})
    assert not (place.directory / "README.md").exists()
    place.publish([name(0)], {"README.md": b"x", "croissant.json": b"{}"})
    assert (place.directory / "README.md").read_bytes() == b"x"
    assert verify(place.directory).ok


def test_who_knows_the_rows_has_them_read_once(place, monkeypatch) -> None:
    commit(place, 0)
    rows = place.intact()
    assert rows == place.committed()
    monkeypatch.setattr(manifest_module.ManifestRow, "parse", None)
    place.publish([name(0)], {"README.md": b"x"}, rows)
    with pytest.raises(ShardError, match="1 shards are not committed"):
        place.publish([name(0), name(1)], {}, rows)


def test_a_copy_in_a_worker_commits_too(place) -> None:
    commit(place, 0)
    copy = pickle.loads(pickle.dumps(place))
    assert len(pickle.dumps(place)) < 500  # nothing of what it has read
    commit(copy, 1)
    commit(place, 2)
    assert len(place.committed()) == 3


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_full_disk_is_one_line_and_goes_on_when_there_is_space(small_disk) -> None:
    place = open_destination(small_disk)
    with place.session(IDENTITY):
        for number in range(100):
            before = set(place.committed())
            error = failed(place, number, size=200)
            if error is not None:
                break
        assert isinstance(error, StorageError)
        assert error.full
        assert not error.transient
        assert "disk is full: free some space" in str(error)
        assert "\n" not in str(error)
        assert 2 < number < 60
        assert set(place.committed()) == set(place.intact()) == before == {name(k) for k in range(number)}
        assert not list((small_disk / "shards").glob("*.partial"))
        assert not list((small_disk / "shards").glob(f"cf-train-{number:06d}.*"))
        subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
        commit(place, number, size=200)
    assert verify(small_disk).ok
    assert verify(small_disk).counts["shards"] == number + 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EIO])
def test_an_image_that_cannot_be_read_is_not_a_disk_that_cannot_be_written(tmp_path, number: int) -> None:
    def broken() -> Iterator[Sample]:
        yield committing.samples(0)[0]
        raise OSError(number, os.strerror(number), "images/7.png")

    with pytest.raises(OSError, match=r"images/7\.png") as caught:
        stage_shard(tmp_path, name(0), broken(), "p", "m")
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


def test_a_refused_shard_leaves_nothing(place) -> None:
    commit(place, 0)
    with place.staging() as there:
        other = staged(there, 0, seed=1)
        with pytest.raises(ShardError, match="expected the bytes committed before"):
            place.commit(other)
        assert not other.tar.exists()
        assert not other.index.exists()
    assert verify(place.directory).ok
    with pytest.raises(CfaugError, match="cannot write"):
        commit(LocalDestination(place.directory / name(0) / "x"), 0)


@given(
    st.lists(st.binary(max_size=1200), min_size=1, max_size=6),
    st.sampled_from(["k", "a-b_C", "k" * 95]),
    st.sampled_from(["png", "webp"]),
)
def test_tar_bytes_are_those_of_webdataset(payloads, stem: str, field: str) -> None:
    """Against webdataset's own writer, which builds each header anew."""
    ours, theirs = io.BytesIO(), io.BytesIO()
    tar, writer = _Tar(ours), webdataset.TarWriter(theirs, "cfaug", "cfaug", 0o444, encoder=False, mtime=0)
    for number, payload in enumerate(payloads):
        key = f"{stem[:90]}{number}"
        tar.add(f"{key}.json", b"{}")
        tar.add(f"{key}.{field}", payload)
        writer.write({"__key__": key, "json": b"{}", field: payload})
    tar.close()
    writer.close()
    assert ours.getvalue() == theirs.getvalue()
    assert (tar.size, tar.sha256.hexdigest()) == (len(ours.getvalue()), hashlib.sha256(ours.getvalue()).hexdigest())


@pytest.mark.parametrize("image", ["png", "png-stored", "webp"])
def test_images_come_back_exactly_from_either_format(tmp_path, image: str) -> None:
    samples = committing.samples(0, size=33)
    place = LocalDestination(tmp_path)
    with place.staging() as there:
        place.commit(stage_shard(there, name(0), samples, "p", "m", image=image))
    reader = ShardReader(tmp_path)
    for i, sample in enumerate(samples):
        assert reader.index[i].image_field == image.removesuffix("-stored")
        np.testing.assert_array_equal(reader.image(i), sample.image)
    assert verify(tmp_path).ok
    flat = Sample(samples[0].key, np.zeros_like(samples[0].image), samples[0].record)
    size = len(encode_sample(flat, image)[image.removesuffix("-stored")])
    assert (size > flat.image.nbytes) == (image == "png-stored")
    grey = Sample(samples[0].key, samples[0].image[:, :, :1], samples[0].record)
    if image == "webp":
        with pytest.raises(ShardError, match=r"grey one: set generate\.image=png"):
            stage_shard(tmp_path, name(1), [grey], "p", "m", image=image)
    with pytest.raises(UsageError, match="one of png, png-stored, webp, came 'jpeg'"):
        stage_shard(tmp_path, name(1), samples, "p", "m", image="jpeg")
    assert not list(tmp_path.glob("*.partial"))


def test_what_readers_would_refuse_is_not_written(tmp_path) -> None:
    """A file name that is not UTF-8 reaches a record as half a surrogate pair, which breaks whoever prints it."""
    sample = committing.samples(0)[0]
    for key in ("caf\udce9.png", "x" * (1 << 20) + "\u00e9"):
        odd = Sample(sample.key, sample.image, {**sample.record, "source_key": key})
        with pytest.raises(ShardError, match=rf"sample '{sample.key}': its record"):
            stage_shard(tmp_path, name(0), [odd], "p", "m")
    accented = Sample(sample.key, sample.image, {**sample.record, "source_key": "caf\u00e9.png"})
    stage_shard(tmp_path, name(0), [accented], "p", "m")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "empty text"),
        ("s3:/bucket/run", "a URL has two slashes"),
        ("s3://", "expected a bucket"),
        ("s3:///", "expected a bucket"),
        ("nothing://a", "cannot reach nothing://a"),
    ],
)
def test_a_place_that_is_none_is_one_line(place: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_destination(place)
    assert "\n" not in str(caught.value)
