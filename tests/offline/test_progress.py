"""The line, the log and the event files of a run; and the summary of logs that crashed processes left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfaug.errors import StorageError, UsageError
from cfaug.offline.progress import Progress, Stats, read_stats


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_one_line_says_how_far_how_fast_and_what_went_wrong(capfd) -> None:
    with Progress(10_000, done=500) as progress:
        for i in range(4):
            progress.shard(f"s{i}.tar", 1000, rejected=int(i == 2) * 3, seconds=1.0)
        progress.retry("s9.tar", "worker died")
    out, err = capfd.readouterr()
    assert out == ""
    last = err.rstrip("\n").split("\r")[-1]
    assert err.count("\n") == 1
    assert last.startswith("generate:  45%|")
    assert "4500/10000 [" in last
    assert "<" in last
    assert last.rstrip().endswith(" img/s, rejected=3, retried=1]")


def test_disabled_prints_nothing_and_still_logs(tmp_path, capfd) -> None:
    with Progress(10, enabled=False, log=tmp_path / "deep" / "stats.jsonl") as progress:
        progress.started(engine="local", place=Path("x"))
        progress.shard("a.tar", 10, 1, 2.0, 77, 2, "host:1")
        progress.failed("b.tar", "first line\nsecond line")
        progress.finished()
    assert capfd.readouterr() == ("", "")
    start, shard, failed, end = lines(tmp_path / "deep" / "stats.jsonl")
    assert (start["event"], start["total"], start["engine"], start["place"]) == ("start", 10, "local", "x")
    assert {k: v for k, v in shard.items() if k != "time"} == {
        "event": "shard", "name": "a.tar", "images": 10, "rejected": 1, "bytes": 77, "seconds": 2.0,
        "images_per_second": 5.0, "attempt": 2, "worker": "host:1",
    }  # fmt: skip
    assert failed["reason"] == "first line second line"
    assert (end["event"], end["images"], end["failed"], end["rejected"]) == ("end", 10, 1, 1)
    assert all(datetime.fromisoformat(row["time"]).utcoffset() == timedelta(0) for row in (start, shard, failed, end))


def test_a_run_that_ends_early_says_why(tmp_path) -> None:
    log = tmp_path / "stats.jsonl"
    with pytest.raises(StorageError), Progress(1, enabled=False, log=log):
        raise StorageError("no space left\non the disk")
    assert lines(log)[-1]["error"] == "StorageError: no space left on the disk"
    with pytest.raises(KeyboardInterrupt), Progress(1, enabled=False, log=log):
        raise KeyboardInterrupt
    assert lines(log)[-1]["error"] == "KeyboardInterrupt"
    found = read_stats(tmp_path)
    assert found is not None
    assert found.errors == ("StorageError: no space left on the disk", "KeyboardInterrupt")
    assert "ended early: KeyboardInterrupt" in str(found)


def test_a_torn_line_is_never_written_on(tmp_path) -> None:
    log = tmp_path / "stats.jsonl"
    with Progress(2, enabled=False, log=log) as progress:
        progress.shard("a.tar", 1, seconds=1.0)
        progress.shard("b.tar", 1, seconds=1.0)
    whole = log.read_bytes()
    for cut in range(len(whole)):
        log.write_bytes(whole[:cut])
        with Progress(2, enabled=False, log=log) as progress:
            progress.shard("c.tar", 5, seconds=1.0)
        found = read_stats(log)
        assert found is not None
        tail = whole[:cut].rpartition(b"\n")[2]
        # a line that lacks nothing but its newline gets it, and then it is one
        complete = whole[:cut].count(b"\n") + tail.endswith(b"}")
        assert (found.shards, found.images) == (complete + 1, complete + 5)
        assert found.torn == int(bool(tail) and not tail.endswith(b"}"))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_while_it_writes_it_loses_at_most_one_line(tmp_path) -> None:
    log = tmp_path / "stats.jsonl"
    code = f"""
        from pathlib import Path
        from cfaug.offline.progress import Progress
        with Progress(10**9, enabled=False, log=Path({str(log)!r})) as progress:
            for i in range(10**9):
                progress.shard(f"{{i}}.tar", 1, seconds=1.0, worker="w" * 2000)
                if i == 400:
                    print("well into it", flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"well into it\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Progress(1, enabled=False, log=log) as progress:
        progress.shard("last.tar", 1, seconds=1.0)
    found = read_stats(log)
    assert found is not None
    assert found.torn <= 1
    assert found.shards == log.read_bytes().count(b"\n") - found.torn
    assert found.shards > 400
    assert json.loads(log.read_bytes().splitlines()[-1])["name"] == "last.tar"


def test_a_full_disk_stops_the_log_and_not_the_run(caplog) -> None:
    with Progress(2, enabled=False, log=Path("/dev/full")) as progress:
        progress.shard("a.tar", 1)
        progress.shard("b.tar", 1)
        assert progress.images == 2
    assert len([r for r in caplog.records if "no more lines in /dev/full" in r.message]) == 1


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^cannot write the run's log to .*; choose another --out$"):
        Progress(1, log=tmp_path / "file" / "stats.jsonl").__enter__()


def test_tensorboard_has_the_scalars(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Progress(100, done=20, enabled=False, tensorboard=tmp_path) as progress:
        progress.started()
        progress.shard("a.tar", 40, rejected=1, seconds=2.0)
        progress.retry("b.tar", "why")
        progress.shard("b.tar", 40, rejected=2, seconds=4.0)
        progress.finished()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("generate/images_per_second_of_a_worker")] == [
        (60, 20),
        (100, 10),
    ]
    assert [(e.step, e.value) for e in events.Scalars("generate/rejected")] == [(60, 1), (100, 3)]
    assert [(e.step, e.value) for e in events.Scalars("generate/retried")] == [(60, 1)]
    assert len(events.Scalars("generate/images_per_second")) == 2


def test_without_tensorboard_nothing_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(UsageError, match=r'pip install "cfaug\[tensorboard\]"'):
        Progress(1, log=tmp_path / "stats.jsonl", tensorboard=tmp_path / "tb")
    assert not list(tmp_path.iterdir())


def test_summary_over_ranks_attempts_and_failures(tmp_path) -> None:
    assert read_stats(tmp_path) is None
    # rank 1 gives up what rank 0 makes afterwards; rank 0 gives up what nobody makes
    with Progress(9, enabled=False, log=tmp_path / "stats-1.jsonl") as progress:
        progress.started()
        progress.retry("c.tar", "died")
        progress.failed("c.tar", "died")
        progress.shard("b.tar", 3, seconds=6.0, worker="h:2")
    pause = datetime.now().microsecond
    while datetime.now().microsecond // 2000 == pause // 2000:  # times are in whole milliseconds
        pass
    with Progress(9, enabled=False, log=tmp_path / "stats-0.jsonl") as progress:
        progress.started()
        progress.shard("a.tar", 3, rejected=1, seconds=1.0, bytes=10, worker="h:1")
        progress.shard("c.tar", 3, seconds=2.0, bytes=10, worker="h:1", attempt=2)
        progress.failed("d.tar", "no such source")
        progress.finished()
    found = read_stats(tmp_path)
    assert found is not None
    assert (found.runs, found.shards, found.images, found.rejected, found.bytes) == (2, 3, 9, 1, 20)
    assert found.workers == {"h:1": (6, 3.0), "h:2": (3, 6.0)}
    assert found.rates == {"h:1": 2.0, "h:2": 0.5}
    assert found.slowest == (("b.tar", 6.0), ("c.tar", 2.0), ("a.tar", 1.0))
    assert found.failed == {"d.tar": "no such source"}
    assert found.retried == 1
    assert json.loads(json.dumps(found.to_json()))["images_per_second"] == {"h:1": 2.0, "h:2": 0.5}
    assert "2 worker(s): 0.5 to 2.0 img/s" in str(found)


JUNK = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"event": st.sampled_from(["shard", "failed", "start", "end"])},
        optional={
            "name": st.integers() | st.text() | st.lists(st.text()),
            "images": st.floats() | st.integers(),
            "seconds": st.floats(),
            "time": st.text(),
            "reason": st.text(),
        },
    ).map(lambda value: json.dumps(value).encode()),
)


@example(
    [
        b'{"event": "shard", "name": 0, "time": "\\u007f"}',
        b'{"event": "failed", "name": 1, "time": "", "reason": ""}',
        b"",
    ]
)
@given(st.lists(JUNK, max_size=6))
@settings(max_examples=40, deadline=None)
def test_no_log_whatever_is_in_it_raises(tmp_path_factory, parts) -> None:
    log = tmp_path_factory.getbasetemp() / "junk.jsonl"
    log.write_bytes(b"\n".join(parts))
    found = read_stats(log)
    assert isinstance(found, Stats)
    assert str(found)
    json.dumps(found.to_json(), allow_nan=False)
