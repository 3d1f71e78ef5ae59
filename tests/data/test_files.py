"""A file is written as a whole or not at all."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cfaug.data.files import replace_file


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    replace_file(path, b"first")
    assert path.read_bytes() == b"first"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"second")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("results.jsonl", b"first")]


def test_two_that_write_one_file_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes all of it while the first is at its fsync."""
    path, real, inside = tmp_path / "plan.json", os.fsync, []

    def fsync(descriptor: int) -> None:
        if not inside:
            inside.append(True)
            replace_file(path, b"second")
            assert path.read_bytes() == b"second"
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"first")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("plan.json", b"first")]


def test_the_new_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, synced = tmp_path / "plan.json", os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"x")
    assert synced[0][1] is False
    assert synced[-1] == (tmp_path, True)  # after the rename


def test_what_killed_writers_left_does_not_pile_up(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    start = f"plan.json.{socket.gethostname()}."
    gone = tmp_path / f"{start}{ended.pid}.0.partial"
    kept = [tmp_path / f"{start}{os.getpid()}.0.partial", tmp_path / f"plan.json.elsewhere.{ended.pid}.0.partial",
            tmp_path / f"x{gone.name}", tmp_path / f"{start}odd.0.partial"]  # fmt: skip
    for left in (gone, *kept):
        left.write_bytes(b"half")
    replace_file(tmp_path / "plan.json", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "plan.json", *kept])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_directories_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EINVAL:
        replace_file(tmp_path / "x", b"x")
    else:
        with pytest.raises(OSError, match="Input/output"):
            replace_file(tmp_path / "x", b"x")
    assert (tmp_path / "x").read_bytes() == b"x"
