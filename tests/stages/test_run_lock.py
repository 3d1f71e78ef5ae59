"""One command at a time in a directory; and a finished run on a disk that cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import call, contents

from cfaug.errors import UsageError
from cfaug.stages.run_lock import run_lock

HOLD = "import sys; from pathlib import Path; from cfaug.stages.run_lock import run_lock\nwith run_lock(Path(sys.argv[1])): print('held', flush=True); input()"


def test_a_second_process_is_refused_and_told_of_the_first(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = contents(out)
    for words in ([], ["--overwrite"], ["--seed=7"]):
        complaint = call(capsys, "plan", recipe, "--out", out, *words).complaint
        assert f"is in use by process {holder.pid} on" in complaint
    assert contents(out) == before == {}
    holder.kill()
    holder.wait()
    assert call(capsys, "plan", recipe, "--out", out).code == 0  # a lock dies with its process


def test_ranks_hold_a_lock_together(tmp_path: Path) -> None:
    together = run_lock(tmp_path, shared=True), run_lock(tmp_path, shared=True)
    with together[0], together[1], pytest.raises(UsageError, match="is in use by"), run_lock(tmp_path):
        pass
    with run_lock(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pass


def test_a_finished_run_on_a_read_only_disk_is_looked_at(
    finished: Path, recipe: Path, tmp_path: Path, capsys: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for lock in (out / "run.lock", out / "shards" / ".lock"):
        lock.unlink()
        lock.mkdir()  # a lock file that cannot be opened

    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for module in ("cfaug.judge.report", "cfaug.judge.accuracy", "cfaug.stages.run_directory"):
        monkeypatch.setattr(f"{module}.replace_file", refused)
    monkeypatch.setattr("cfaug.stages.reporting.os.access", lambda *_: False)
    before = contents(out)
    for command in ("report", "train", "evaluate", "run"):
        answer = call(capsys, command, recipe, "--out", out)
        assert answer.code == 0, answer.err
    assert "the report that is there stays" in caplog.text
    assert contents(out) == before
