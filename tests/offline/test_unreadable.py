"""A place that does not answer is not a damaged shard: every reader says so, and that the same again may succeed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import damages

from cfaug.causal.intervention import do
from cfaug.errors import ShardError, StorageError
from cfaug.offline import Plan, ShardReader, verify
from cfaug.offline.plan import PlanRow
from cfaug.offline.read_committed import Committed
from cfaug.offline.scan import scan
from cfaug.offline.storage import LocalStorage

Failing = Callable[..., None]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    damages.make(tmp_path / "shards", 3)
    return tmp_path / "shards"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Make a method of storage (or of `owner`) fail with an errno, for names that end as given."""

    def make(method: str, suffix: str = "", code: int = errno.EIO, owner: Any = LocalStorage) -> None:
        whole = getattr(owner, method)

        def fails(storage: Any, name: str = "", *rest: Any) -> Any:
            if str(name).endswith(suffix):
                raise OSError(code, os.strerror(code))
            return whole(storage, name, *rest)

        monkeypatch.setattr(owner, method, fails)

    return make


class _Stream:
    """A tar that breaks off after so many reads, as a mounted bucket does."""

    def __init__(self, handle: Any, reads: int) -> None:
        self.handle, self.reads = handle, reads

    def seek(self, offset: int) -> None:
        self.handle.seek(offset)

    def read(self, size: int) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self.handle.read(size))


def break_off(monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    opened = LocalStorage.opened

    @contextmanager
    def breaking(storage: LocalStorage, name: str) -> Iterator[Any]:
        with opened(storage, name) as handle:
            yield _Stream(handle, reads)

    monkeypatch.setattr(LocalStorage, "opened", breaking)


def passing(caught: pytest.ExceptionInfo[StorageError], where: str) -> None:
    text = str(caught.value)
    assert caught.value.transient, text
    assert where in text, text
    assert "could not be read" in text, text
    assert "generate" not in text, text
    assert "\n" not in text, text


def test_random_reads_and_opening(shards: Path, failing: Failing) -> None:
    reader = ShardReader(shards)
    failing("pread", owner=os)
    for read in (reader.picture, reader.image, reader.record, reader.sample):
        with pytest.raises(StorageError) as caught:
            read(1)
        passing(caught, f"{damages.NAME}, sample 'train-000000001'")
    failing("read_range", ".index.jsonl")
    with pytest.raises(StorageError) as caught:
        ShardReader(shards)
    passing(caught, damages.INDEX)
    failing("sizes")
    with pytest.raises(StorageError) as caught:
        ShardReader(shards)
    passing(caught, str(shards))


def test_what_stays_wrong_is_still_a_shard_error(shards: Path, failing: Failing) -> None:
    reader = ShardReader(shards)
    failing("pread", code=errno.EACCES, owner=os)
    with pytest.raises(
        ShardError, match=r"sample 'train-000000000': cannot read it: Permission denied; run cfaug verify"
    ):
        reader.image(0)


@pytest.mark.parametrize("reads", [0, 1])
def test_one_after_another(shards: Path, monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    committed = Committed(shards)
    break_off(monkeypatch, reads)
    with pytest.raises(StorageError) as caught:
        [one.record() for one in committed.samples(committed.manifest[0])]
    passing(caught, f"{damages.NAME}, sample 'train-00000000{reads}'")
    with pytest.raises(StorageError) as caught:
        list(scan(shards / damages.NAME))
    passing(caught, damages.NAME)


def test_verify_says_what_could_not_be_read_and_goes_on(
    shards: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, 3)
        report = verify(shards)
    assert len(report.problems) == 2  # one a shard
    for problem in report.problems:
        assert "could not be read" in problem
        assert "generate" not in problem
    failing("read_range", damages.INDEX)
    report = verify(shards)
    assert len(report.problems) == 1, report
    assert f"{damages.INDEX}: could not be read" in report.problems[0]
    assert report.counts["shards"] == 2


def test_a_plan(tmp_path: Path, failing: Failing) -> None:
    place = tmp_path / "plan"
    Plan([PlanRow(f"k{i}", "s", do({}), i, 0, i) for i in range(3)]).save(place)
    failing("read", "00000.jsonl")
    with pytest.raises(StorageError) as caught:
        Plan.load(place)
    passing(caught, "plan-00000.jsonl")
    failing("read", "plan.json")
    with pytest.raises(StorageError) as caught:
        Plan.load(place)
    passing(caught, "plan.json")
