"""The laws of committing, the same for a directory, an object in memory and S3 (moto's server): no half file is ever visible,
a commit happens once, and a process that is killed at any moment is made good by the next one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
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

import pytest
import webdataset
from helpers import committing
from helpers.committing import IDENTITY, claim, commit, name, staged
from helpers.faults import BUCKET, s3_server
from helpers.processes import killed_at

from cfaug.errors import ShardError, StorageError, UsageError
from cfaug.offline import ShardReader, verify, write_shard
from cfaug.offline.commit import Destination, open_destination
from cfaug.offline.format import Sample
from cfaug.offline.read_committed import read_manifest
from cfaug.offline.storage import LocalStorage
from cfaug.offline.write_shard import TarFile, stage_shard

INDEX = "cf-train-000000.index.jsonl"


@pytest.fixture
def local(tmp_path: Path) -> Destination:
    return Destination(LocalStorage(tmp_path / "shards"))


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server(attempts=2):
        yield


@pytest.fixture(params=["directory", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    run = f"run{abs(hash(request.node.nodeid))}"
    if request.param == "s3":
        request.getfixturevalue("server")
    return open_destination({"directory": tmp_path / run, "memory": f"memory://{run}", "s3": f"s3://{BUCKET}/{run}"}[request.param])  # fmt: skip


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted single process makes of shards 0..23: name -> content."""
    return contents(published(Destination(LocalStorage(tmp_path_factory.mktemp("truth"))), range(24)))


def published(place: Destination, numbers: range) -> Destination:
    with place.session(IDENTITY):
        for number in numbers:
            if name(number) not in place.intact():
                commit(place, number)
        place.publish([name(number) for number in numbers], {"README.md": b"card"})
    return place


def contents(place: Destination) -> dict[str, bytes]:
    """Everything that is there, the lock apart."""
    names = [*place.storage.sizes(), *place.storage.sizes("commits/")]
    return {one: place.storage.read(one) for one in names if one != ".lock"}


def check_readable(place: Destination, truth: dict[str, bytes], at_least: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """What readers see is whole and is what an undisturbed run makes; `at_least` these are committed."""
    rows = {row.name: row for row in read_manifest(place.storage)}
    assert at_least <= rows.keys()
    for row in rows.values():
        assert place.storage.read(row.name) == truth[row.name]
        assert place.storage.read(row.index) == truth[row.index]


def test_finished_runs_are_equal_bytes_everywhere(place, truth) -> None:
    assert place.committed() == place.intact() == {}
    with place.session(IDENTITY):
        for number in (2, 0, 1, 3):  # in any order
            commit(place, number)
        assert place.intact().keys() == {name(k) for k in range(4)}
    found = contents(published(place, range(4)))
    manifest = b"".join(truth["manifest.jsonl"].splitlines(keepends=True)[:4])
    wanted = {n: c for n, c in truth.items() if n.startswith("cf-") and int(n[9:15]) < 4}
    assert found == {**wanted, "README.md": b"card", "manifest.jsonl": manifest}
    assert pickle.loads(pickle.dumps(place)).committed() == place.committed()
    assert len(pickle.dumps(place)) < 500
    assert contents(published(place, range(4))) == found  # publishing once more changes nothing
    assert place.one_process == place.storage.url.startswith("memory")


def test_looking_makes_nothing(tmp_path) -> None:
    destination = open_destination(tmp_path)
    assert destination.storage == LocalStorage(tmp_path / "shards")
    assert open_destination(f"file://{tmp_path}").storage == destination.storage
    assert destination.committed() == destination.intact() == {}
    assert not (tmp_path / "shards").exists()


def test_a_run_that_goes_on_is_readable(place) -> None:
    """Before the manifest is published the commits say what exists; a tar alone, even a whole one, does not."""
    with place.staging() as there:
        place.storage.write(name(7), staged(there, 7).tar.read_bytes())
    assert place.committed() == {}
    commit(place, 1)
    commit(place, 0)
    reader = ShardReader(place.storage.url)
    assert [row.name for row in reader.manifest] == [name(0), name(1)]
    assert reader.sample(1).record == committing.samples(0)[1].record
    with pytest.raises(ShardError, match=r"got 1 that are not \(cf-train-000007"):
        place.publish([name(0), name(7)], {"README.md": b"x"})
    assert not {"manifest.jsonl", "README.md"} & place.storage.sizes().keys()
    commit(place, 7)  # the bytes that a run left which did not commit them
    place.publish([name(0), name(1), name(7)], {})
    assert len(ShardReader(place.storage.url)) == 9


@pytest.mark.parametrize("finished", [False, True])
def test_the_same_again_is_fine_anything_else_refused(place, finished: bool) -> None:
    row = commit(place, 0)
    if finished:
        published(place, range(1))
    assert commit(place, 0) == row
    with pytest.raises(ShardError, match="expected the bytes committed before"):
        commit(place, 0, seed=1)
    with pytest.raises(
        UsageError, match=r"shards with plan=q, as this run makes them, got plan=p; .*--overwrite"
    ) as caught:
        commit(place, 1, plan="q")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="expected shards with batch_size=8, as this run makes them, got batch_size=4"):
        claim(place, {**IDENTITY, "batch_size": 8})
    with place.session(IDENTITY, shared=True):
        assert place.intact() == {row.name: row}
    with place.session({**IDENTITY, "plan": "q"}, overwrite=True):
        assert place.committed() == {}
        commit(place, 0, plan="q", seed=1)
    assert contents(place).keys() == {"RUN.json", name(0), INDEX, f"commits/{name(0)}.json"}
    assert len(ShardReader(place.storage.url)) == 3


@pytest.mark.parametrize("finished", [False, True])
def test_a_lost_or_shortened_file_is_made_again(place, truth, finished: bool) -> None:
    for number in range(2):
        commit(place, number)
    if finished:
        published(place, range(2))
    place.storage.write(name(0), b"short")
    place.storage.remove("cf-train-000001.index.jsonl")
    assert (len(place.intact()), len(place.committed())) == (0, 2)
    published(place, range(2))
    assert len(place.intact()) == 2
    check_readable(place, truth)


def test_a_stored_tar_is_not_overwritten(place) -> None:
    """A twin may be about to commit it; overwriting would leave its row without its bytes."""
    commit(place, 0)
    with place.staging() as there:
        place.storage.write(name(1), staged(there, 1, seed=1).tar.read_bytes())
    with pytest.raises(ShardError, match=r"that a writer of this run stored before.*not deterministic"):
        commit(place, 1)
    assert set(place.committed()) == {name(0)}


def test_a_damaged_place_is_overwritten(place) -> None:
    commit(place, 0)
    place.publish([name(0)], {"README.md": b"of the old run"})
    place.storage.write("manifest.jsonl", b"damaged\n")
    with pytest.raises(ShardError, match="line 1"), place.session(IDENTITY):
        place.intact()
    with place.session(IDENTITY, overwrite=True):
        assert contents(place).keys() == {"RUN.json"}
    for content in (b"", b"[1]", json.dumps({**IDENTITY, "format": 2}).encode()):
        place.storage.write("RUN.json", content)
        with pytest.raises(ShardError, match=r"RUN\.json: expected a run's identity"):
            commit(place, 0)


def test_a_run_published_while_it_is_listed_is_whole(place, monkeypatch) -> None:
    """The commit files go when the manifest is there: whoever has listed them before must not end up with nothing."""
    for number in range(3):
        commit(place, number)
    kind, read_many, listed = type(place.storage), type(place.storage).read_many, []

    def published_before(storage, names):  # type: ignore[no-untyped-def]
        if not listed:
            listed.extend(names)
            published(place, range(3))
        return read_many(storage, names)

    monkeypatch.setattr(kind, "read_many", published_before)
    assert len(read_manifest(place.storage)) == 3
    assert len(listed) == 3


def test_many_processes_commit_and_no_row_is_lost(local, truth) -> None:
    numbers = list(range(24))
    processes = []
    for k in range(2):
        mine = numbers + numbers[k::2]  # every shard by both, half of them again
        random.Random(k).shuffle(mine)
        processes.append(committing.started(local.storage.url, mine))
    assert [process.wait(timeout=60) for process in processes] == [0] * 2
    assert contents(published(local, range(24))) == truth


@pytest.mark.slow
def test_processes_killed_at_random_lose_no_commit(local, truth) -> None:
    """Each says what it has committed and is killed soon after, on its way through the next ones."""
    rng = random.Random(0)
    said: set[str] = set()
    killed = 0
    for k in (1, 4):
        processes = [committing.started(local.storage.url, rng.sample(range(24), 24)) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            said |= {name(int(process.stdout.readline())) for _ in range(k)}
        time.sleep(rng.uniform(0, 0.01))
        for process in processes:
            killed += process.poll() is None  # in the midst of its work; on a busy machine one may be through
            process.kill()
            process.wait()
        check_readable(local, truth, said)
    assert killed >= 2
    assert contents(published(local, range(24))) == truth


@pytest.mark.parametrize("torn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_kill_at_any_step_is_made_good(truth, tmp_path, torn: bool) -> None:
    """SIGKILL at the n-th system call of staging, committing and publishing, for every n."""
    wanted = None
    for step in range(60):
        place = Destination(LocalStorage(tmp_path / f"{step}"))
        commit(place, 0)
        calls = ("fsync", "replace", "link", "unlink", "write", "close", "rmdir")
        status = killed_at(step, calls, partial(published, place, range(2)), torn)
        check_readable(place, truth, {name(0)})
        found = contents(published(place, range(2)))
        wanted = wanted or {**found, **{n: truth[n] for n in found if n.startswith("cf-")}}
        assert found == wanted  # and no partial file
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert 12 < step < 59


def test_an_error_at_any_step_leaves_readers_a_whole_place(truth, tmp_path) -> None:
    for kind in (KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")):
        for step in range(40):
            place, left = Destination(LocalStorage(tmp_path / f"{type(kind).__name__}{step}")), [step]
            commit(place, 0)
            error = None
            with pytest.MonkeyPatch.context() as patch:
                for call in ("fsync", "replace", "link"):
                    real = getattr(os, call)

                    def wrapped(*args: object, real=real, left=left, kind=kind) -> object:  # type: ignore[no-untyped-def]
                        left[0] -= 1
                        if left[0] == -1:
                            raise kind
                        return real(*args)

                    patch.setattr(os, call, wrapped)
                try:
                    commit(place, 1)
                except (KeyboardInterrupt, StorageError) as caught:
                    error = caught
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt) or (error.transient and not error.full)
            assert not list(place.storage.path.glob("**/*.partial"))
            check_readable(place, truth, {name(0)})
            commit(place, 1)
            check_readable(place, truth, {name(0), name(1)})
        assert step >= 6


def test_a_relative_place_stays_where_it_was_named(tmp_path, monkeypatch) -> None:
    """A worker may run in a different directory."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    sent = pickle.dumps(open_destination("."))
    commit(open_destination("."), 0)
    monkeypatch.chdir(tmp_path)
    commit(pickle.loads(sent), 1)
    assert len(open_destination("run").committed()) == 2


@pytest.fixture
def holder(local) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in a session of the directory."""
    code = f"""
        import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers.committing import IDENTITY
        from cfaug.offline.commit import Destination
        from cfaug.offline.storage import open_storage
        with Destination(open_storage({local.storage.url!r})).session(IDENTITY, shared=sys.argv[1] == "rank"):
            print("in", flush=True)
            time.sleep(60)
    """
    found = []

    def start(word: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), word], stdout=subprocess.PIPE)
        found.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        return process

    yield start  # type: ignore[misc]
    for process in found:
        process.kill()
        process.wait()


def test_a_second_session_is_refused_ranks_share_one(local, holder) -> None:
    other = holder("alone")
    for shared in (False, True):
        with pytest.raises(UsageError, match=rf"pid {other.pid} on .*--out") as caught:
            claim(local, shared=shared)
        assert "\n" not in str(caught.value)
    commit(local, 0)  # workers of the claim's holder are other processes: they commit
    assert len(ShardReader(local.storage.url)) == 3  # reading needs no lock
    other.kill()
    other.wait()
    rank = holder("rank")  # a killed one locks nobody out
    with local.session(IDENTITY, shared=True):
        commit(local, 1)
    with pytest.raises(UsageError, match="another process"):
        claim(local)
    rank.kill()
    rank.wait()
    claim(local)
    assert local.intact().keys() == {name(0), name(1)}


def test_file_systems_without_locks_or_links_work(local, truth, monkeypatch) -> None:
    """Commits are idempotent: without flock two coordinators do the same work twice, and nothing is damaged."""

    def absent(number: int, *_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", partial(absent, errno.ENOLCK))
    monkeypatch.setattr(os, "link", partial(absent, errno.EPERM))
    with local.session(IDENTITY), local.session(IDENTITY):
        commit(local, 0)
        commit(local, 0)
        with pytest.raises(ShardError, match="committed before"):
            commit(local, 0, seed=1)
    published(local, range(1))
    check_readable(local, truth, {name(0)})


def test_the_sweep_takes_what_nobody_is_writing(local) -> None:
    directory, host = local.storage.path, os.uname().nodename
    directory.mkdir()
    ours, dead = f"a.tar.{host}.{os.getpid()}.ab.partial", f"a.tar.{host}.{2**22 + 1}.ab.partial"
    young, old = "a.tar.elsewhere.org.7.ab.partial", "b.tar.elsewhere.org.7.ab.partial"
    for file in (ours, dead, young, old):
        (directory / file).touch()
    os.utime(directory / old, (0, 0))
    claim(local)
    assert {path.name for path in directory.glob("*.partial")} == {ours, young}


def test_writing_shards_one_by_one_keeps_a_manifest(tmp_path) -> None:
    for number in (1, 0):
        write_shard(tmp_path, name(number), committing.samples(number), "p", "m")
    assert [json.loads(line)["name"] for line in (tmp_path / "manifest.jsonl").open()] == [name(0), name(1)]
    assert not (tmp_path / "commits").exists()
    assert not (tmp_path / "RUN.json").exists()
    assert verify(tmp_path).ok


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_full_disk_is_one_line_and_the_run_goes_on(small_disk) -> None:
    place = open_destination(small_disk)
    with place.session(IDENTITY):
        error: StorageError | None = None
        for number in range(100):
            before = set(place.committed())
            try:
                commit(place, number, size=200)
            except StorageError as caught:
                error = caught
                break
        assert error is not None
        assert error.full
        assert not error.transient
        assert "disk is full; free some space" in str(error)
        assert "\n" not in str(error)
        assert 2 < number < 60
        assert set(place.committed()) == set(place.intact()) == before == {name(k) for k in range(number)}
        assert not list((small_disk / "shards").glob("**/*.partial"))
        subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
        commit(place, number, size=200)
        place.publish([name(k) for k in range(number + 1)], {})
    assert verify(small_disk).ok
    assert verify(small_disk).counts["shards"] == number + 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC])
def test_an_unreadable_source_is_not_a_full_disk(tmp_path, number: int) -> None:
    def broken() -> Iterator[Sample]:
        yield committing.samples(0)[0]
        raise OSError(number, os.strerror(number), "images/7.png")

    with pytest.raises(OSError, match=r"images/7\.png") as caught:
        stage_shard(tmp_path, name(0), broken(), "p", "m")
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(0,), (1, 511, 512), (513, 1024, 1 << 20, 3)])
def test_tar_bytes_are_those_of_webdataset(tmp_path, sizes: tuple[int, ...]) -> None:
    """Against webdataset's own writer, which builds each header anew."""
    tar = TarFile(tmp_path / "ours.tar", "ours.tar")
    with (tmp_path / "theirs.tar").open("wb") as handle:
        writer = webdataset.TarWriter(handle, "cfaug", "cfaug", 0o444, encoder=False, mtime=0)
        for number, size in enumerate(sizes):
            key = f"{'k' * 90}{number}"
            payload = random.Random(number).randbytes(size)
            tar.add([(f"{key}.json", b"{}"), (f"{key}.png", payload)])
            writer.write({"__key__": key, "json": b"{}", "png": payload})
        tar.finish()
        tar.close()
        writer.close()
    content = (tmp_path / "ours.tar").read_bytes()
    assert content == (tmp_path / "theirs.tar").read_bytes()
    assert (tar.size, tar.sha256.hexdigest()) == (len(content), hashlib.sha256(content).hexdigest())
