"""Object stores: real S3 requests to moto's server, through a proxy that fails; and the same laws in memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from helpers import committing
from helpers.committing import IDENTITY, claim, commit, name, staged
from helpers.faults import BUCKET, FaultProxy, s3_server

from cfaug.errors import ShardError, StorageError, UsageError
from cfaug.offline import ShardReader
from cfaug.offline.commit import Destination, open_destination
from cfaug.offline.storage import open_storage


@pytest.fixture(scope="module")
def server() -> Iterator[FaultProxy]:
    with s3_server(attempts=2) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: FaultProxy) -> Iterator[FaultProxy]:
    server.calm()
    yield server
    assert server.uploads() == []  # whatever happened: nothing half there that somebody pays for


@pytest.fixture
def s3(proxy: FaultProxy, request: pytest.FixtureRequest) -> Destination:
    return open_destination(f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}")


def together(s3: Destination, seeds: Sequence[int], first: Callable[[], object] | None = None) -> list[object]:
    """What became of commits of shard 0 by one thread a seed; the others start when `first` returns."""
    outcomes: list[object] = [None] * len(seeds)

    def go(i: int) -> None:
        try:
            outcomes[i] = commit(pickle.loads(pickle.dumps(s3)), 0, seed=seeds[i])
        except ShardError as error:
            outcomes[i] = error

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(seeds))]
    for i, thread in enumerate(threads):
        thread.start()
        if i == 0 and first is not None:
            first()
    for thread in threads:
        thread.join()
    return outcomes


def test_twins_that_commit_at_the_same_instant(s3) -> None:
    """Other bytes under one name: exactly one wins, and what it vouches for is what is there."""
    with s3.session(IDENTITY):
        outcomes = together(s3, (0, 1, 2, 0))
    committed = s3.committed()[name(0)]
    with s3.staging() as place:
        (seed,) = (seed for seed in range(3) if staged(place, 0, seed=seed).row == committed)
    for tried, outcome in zip((0, 1, 2, 0), outcomes):
        assert (outcome == committed) if tried == seed else isinstance(outcome, ShardError)
    assert [len(ShardReader(s3.storage.url)), ShardReader(s3.storage.url).sample(0).key] == [3, "train-000000-0"]


@pytest.mark.parametrize("at", ["index", pytest.param("commits/", marks=pytest.mark.slow)])
def test_a_twin_that_comes_between_two_steps_of_another(proxy, s3, at: str) -> None:
    """The first has stored its tar and waits: other bytes are refused, the same are committed by who comes first."""
    with s3.session(IDENTITY):
        proxy.fail("slow", "PUT", at, seconds=2.0)
        same, other, again = together(s3, (0, 1, 0), first=lambda: proxy.hanging.wait(timeout=30))
    assert proxy.struck == 1
    assert isinstance(other, ShardError)
    assert "that a writer of this run stored before" in str(other)
    assert s3.committed() == {name(0): same}
    assert same == again
    assert ShardReader(s3.storage.url).sample(0).key == "train-000000-0"


def test_a_resume_reads_each_commit_once(proxy, s3) -> None:
    for number in range(3):
        commit(s3, number)
    proxy.calm()
    rows = s3.intact()
    s3.publish(list(rows), {"README.md": b"card"}, rows)
    assert sum(method == "GET" and "commits/" in path and ".json" in path for method, path in proxy.seen) == 3


@pytest.mark.slow
def test_what_a_killed_worker_had_staged_goes(tmp_path, monkeypatch) -> None:
    """A worker that was killed leaves a shard in /tmp; who comes next on this host removes it, and no live one's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys; from cfaug.offline.commit import open_destination\n"
        "with open_destination('memory://x').staging() as place:\n"
        "    (place / 'shard').write_bytes(b'half'); print(place, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        killed, alive = [Path(process.stdout.readline().decode().strip()) for process in processes if process.stdout]
        processes[0].kill()
        processes[0].wait()
        (tmp_path / "cfaug-elsewhere-1-abc").mkdir()  # another host's, or none of ours
        claim(open_destination("memory://y"))
        assert not killed.exists()
        assert (alive / "shard").exists()
        assert (tmp_path / "cfaug-elsewhere-1-abc").exists()
        killed.mkdir()
        with open_destination("memory://y").staging():  # workers on other hosts than the coordinator's
            assert not killed.exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("kind", "path"),  # benchmarks/s3_faults.py has every kind at every request
    [("500", ".tar?"), ("503", "RUN.json"), ("reset-put", ".tar?"), ("lost-answer", ".tar?"), ("lost-answer", "commits/"),
     ("lost-answer", "RUN.json")],
)  # fmt: skip
def test_a_passing_fault_is_survived(proxy, s3, kind: str, path: str) -> None:
    proxy.fail(kind, "PUT", path if path != ".tar?" else f"shards/{name(0)}")
    with s3.session(IDENTITY):
        row = commit(s3, 0)
    assert proxy.struck == 1
    assert s3.committed() == {row.name: row}
    assert len(ShardReader(s3.storage.url)) == 3


@pytest.mark.parametrize(
    "kind", ["500", "403", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reset-put", "lost-answer"))]
)
def test_a_lasting_fault_is_one_line_and_nothing_is_committed(proxy, s3, kind: str) -> None:
    with s3.session(IDENTITY):
        proxy.fail(kind, "PUT", f"shards/{name(0)}" if kind != "lost-answer" else "index.jsonl", times=1000)
        with pytest.raises(StorageError, match=r"cannot write cf-train-000000\.tar in s3://") as caught:
            commit(s3, 0)
        assert caught.value.transient == (kind != "403")
        assert not caught.value.full
        assert "\n" not in str(caught.value)
        assert proxy.struck >= (1 if kind == "403" else 2)
        proxy.calm()
        assert s3.committed() == {}
        commit(s3, 0)  # the same again, when it has passed
    assert len(ShardReader(s3.storage.url)) == 3


def test_an_answer_that_breaks_off_is_asked_for_again_or_is_an_error(proxy, s3) -> None:
    row = commit(s3, 0)
    proxy.fail("reset-get", "GET", name(0))
    assert len(s3.storage.read(row.name)) == row.bytes
    assert proxy.struck == 1
    proxy.fail("reset-get", "GET", times=1000)
    with pytest.raises(OSError, match="payload"):
        s3.storage.read(row.name)
    proxy.calm()
    proxy.fail("500", "GET", times=1000)
    proxy.fail("500", "HEAD", times=1000)
    with pytest.raises(StorageError, match=r"manifest\.jsonl: could not be read") as caught:
        s3.committed()
    assert caught.value.transient


def test_a_process_killed_while_it_uploads_leaves_nothing(proxy, s3) -> None:
    prefix = s3.storage.url.removeprefix(f"s3://{BUCKET}/")
    with s3.session(IDENTITY):
        proxy.fail("hang", "PUT", f"shards/{name(0)}", seconds=1.0)
        process = committing.started(s3.storage.url, [0])
        try:
            assert proxy.hanging.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert proxy.uploads() == []
        assert proxy.names(prefix) == [f"{prefix}/RUN.json"]
        assert s3.committed() == {}
        commit(s3, 0)
    assert len(s3.intact()) == 1


def test_a_large_shard_is_one_put(proxy, s3) -> None:
    """s3fs would upload more than 100 MiB in parts, which a kill leaves behind to be paid for."""
    content = bytes(101 * 2**20)
    s3.storage.write("large", content)
    assert [method for method, path in proxy.seen if method in ("PUT", "POST")] == ["PUT"]
    assert s3.storage.sizes("large") == {"large": len(content)}


def test_no_bucket_no_credentials_no_package_are_one_line_each(proxy, monkeypatch) -> None:
    with pytest.raises(StorageError, match="bucket does not exist; check that the bucket exists") as caught:
        claim(open_destination("s3://nobody/run"))
    assert not caught.value.transient
    with monkeypatch.context() as patch:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(variable)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with pytest.raises(StorageError, match="credentials; set AWS_ACCESS_KEY_ID"):
            claim(open_destination(f"s3://{BUCKET}/run"))
        s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        with pytest.raises(UsageError, match=r'pip install "cfaug\[s3\]"'):
            open_storage("s3://bucket/run")
    with pytest.raises(UsageError, match="write a directory, s3://"):
        open_destination("nonsense://x")


def test_nobody_elses_file_system_is_changed(proxy, monkeypatch) -> None:
    """fsspec hands one instance to all who ask with the same options, also those of the user's configuration."""
    import s3fs
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"connect_timeout": 3}, "use_listings_cache": False})
    theirs = s3fs.S3FileSystem()
    files, _ = open_storage(f"s3://{BUCKET}/run")._at("")
    assert files is not theirs
    assert (files.retries, theirs.retries) == (2, s3fs.S3FileSystem.retries)
    assert files.config_kwargs["connect_timeout"] == 3
    assert files is open_storage(f"s3://{BUCKET}/other")._at("")[0]


def test_a_full_temporary_directory_is_named(s3, monkeypatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(StorageError, match=f"in {Path(tempfile.gettempdir())}: the disk is full") as caught:
        commit(s3, 0)
    assert caught.value.full
