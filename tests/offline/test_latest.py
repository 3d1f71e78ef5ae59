"""What a reader keeps open or read: the latest used, whoever asks at once, and no position that two readers share."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.committing import commit
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.offline import ShardReader
from cfaug.offline.commit import open_destination
from cfaug.offline.reading import indices
from cfaug.offline.reading.descriptors import Descriptors
from cfaug.offline.reading.indices import Indices
from cfaug.offline.reading.latest import Latest

BLOCK, BLOCKS = 512, 20_000


class Slow:
    """A storage whose reads take a while, as those of an object store do, and are counted."""

    def __init__(self, storage: Any) -> None:
        self.storage, self.url, self.reads = storage, storage.url, Counter[str]()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.reads[name] += 1
        time.sleep(0.002)
        found: bytes = self.storage.read_range(name, offset, size)
        return found


def test_sixteen_threads_read_each_index_once_and_what_is_kept_stays_within_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of four shards, as a stream of remote shards asks: 16 threads miss the same index together."""
    destination = open_destination(tmp_path)
    with destination.session():
        for number in range(24):
            commit(destination, number, count=4)
    reader = ShardReader(tmp_path)
    size = max(row.index_bytes for row in reader.manifest)
    monkeypatch.setattr(indices, "KEPT", 6 * size)
    slow = Slow(reader.storage)
    held = Indices(slow, reader.manifest)  # type: ignore[arg-type]
    with ThreadPoolExecutor(16) as pool:
        for turn in range(3):
            for window in range(0, 96, 16):
                numbers = list(range(window, window + 16))
                random.Random(turn).shuffle(numbers)
                assert list(pool.map(held.key, numbers)) == [reader.keys[i] for i in numbers]
            assert sum(slow.reads.values()) == 24 * (turn + 1)  # a window fits, all shards do not


def test_what_is_missing_is_made_side_by_side() -> None:
    """A lock around the making would let sixteen readers of remote indices wait for one another."""
    meet = threading.Barrier(2, timeout=60)
    latest = Latest(2, lambda key: meet.wait() and key)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda key: latest.get(key) is not None, "ab")) == [True, True]


def test_what_cannot_be_made_is_tried_again() -> None:
    tries: list[int] = []

    def make(key: int) -> int:
        tries.append(key)
        if len(tries) == 1:
            raise OSError("not now")
        return key

    latest = Latest(2, make)
    with pytest.raises(OSError, match="not now"):
        latest.get(5)
    assert latest.get(5) == latest.get(5) == 5
    assert tries == [5, 5]


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 9), max_size=60), most=st.integers(1, 30))
def test_the_latest_used_are_kept(keys: list[int], most: int) -> None:
    """Against a list, latest last; number `k` weighs k, and one is kept whatever it weighs."""
    made: list[int] = []
    latest = Latest(most, lambda key: made.append(key) or key, weight=lambda key: key)
    kept: list[int] = []
    expected: list[int] = []
    for key in keys:
        if key in kept:
            kept.remove(key)
        else:
            expected.append(key)
        kept.append(key)
        while sum(kept) > most and len(kept) > 1:
            kept.pop(0)
        assert latest.get(key) == key
        assert (made, len(latest)) == (expected, len(kept))


def _holding(latest: Latest[str, str], entered: threading.Event, leave: threading.Event) -> threading.Thread:
    def make() -> None:
        with latest.lock:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=make)
    thread.start()
    entered.wait(60)
    return thread


def test_a_process_forked_while_a_thread_holds_the_lock_does_not_wait_for_it() -> None:
    latest = Latest(2, lambda key: key.upper())
    leave = threading.Event()
    thread = _holding(latest, threading.Event(), leave)
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    child = context.Process(target=lambda: queue.put(latest.get("a")))
    child.start()
    try:
        assert queue.get(timeout=60) == "A"
    finally:
        leave.set()
        child.kill()
        child.join()
        thread.join()


@pytest.fixture
def files(tmp_path: Path) -> Descriptors:
    """Two files of blocks that say which block of which file they are."""
    for name in "ab":
        with (tmp_path / name).open("wb") as file:
            for i in range(BLOCKS):
                file.write(f"{name}{i}".encode().ljust(BLOCK))
    return Descriptors(tmp_path)


def wrong(files: Descriptors, seed: int) -> int:
    """How many of many random reads gave another block than was asked for."""
    drawn, found = random.Random(seed), 0
    for _ in range(4000):
        name, i = drawn.choice("ab"), drawn.randrange(BLOCKS)
        found += files.read(name, i * BLOCK, BLOCK).rstrip() != f"{name}{i}".encode()
    return found


def in_threads(files: Descriptors) -> list[int]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda seed: wrong(files, seed), range(4)))


def in_forks(files: Descriptors) -> list[int]:
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    others = [context.Process(target=lambda seed=seed: queue.put(wrong(files, seed))) for seed in range(3)]
    for other in others:
        other.start()
    found = [wrong(files, 9), *(queue.get(timeout=60) for _ in others)]
    for other in others:
        other.join()
    return found


@pytest.mark.parametrize("together", [in_threads, in_forks])
def test_readers_at_once_share_no_position(files: Descriptors, together: Callable[[Descriptors], list[int]]) -> None:
    """Forked processes have the same open file, with one position, as threads have."""
    files.read("a", 0, 1), files.read("b", 0, 1)  # open before anybody is forked
    before = len(os.listdir("/proc/self/fd"))
    assert together(files) == [0] * 4
    assert len(os.listdir("/proc/self/fd")) <= before + 1
