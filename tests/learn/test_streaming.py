"""The order of a stream knows neither workers nor ranks, and a resumed stream continues it; real DataLoaders throughout."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info
from torchvision.transforms import v2

from cfaug.errors import CfaugError, DataError, ShardError, UsageError
from cfaug.learn.stream import CounterfactualStream, EpochOrder, dealt, rounds
from cfaug.offline import write_shard
from cfaug.offline.read import Sample, ShardReader

COUNTS = (7, 11, 1, 9, 12)  # samples a shard; every fourth is a null intervention: 10 of them, 30 counterfactuals
SIZE = 4


def sample(shard: int, i: int, split: str = "train", target: str = "") -> Sample:
    """Its pixels say which row it is."""
    row, key = sum(COUNTS[:shard]) + i, f"{split}-{shard:06d}-{i}"
    null = row % 4 == 3
    record = {
        "schema": 1, "key": key, "source_key": f"{row}.png", "source_digest": f"{row:064x}", "split": split,
        "do": {} if null else {"colour": "blue"}, "attributes": {"colour": "blue"}, "factual": {"colour": "red"},
        "target": target or "ab"[row % 2], "seed": row, "replica": 0, "model": "m", "quality": {},
    }  # fmt: skip
    return Sample(key, np.full((SIZE, SIZE + 1, 3), row, np.uint8), record)


def write(place: Path, **options: str) -> Path:
    for shard, count in enumerate(COUNTS):
        samples = [sample(shard, i, **options) for i in range(count)]
        write_shard(place, f"cf-{samples[0].record['split']}-{shard:06d}.tar", samples, "p" * 64, "m" * 64)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stream") / "shards")


@pytest.fixture(scope="module")
def reader(place: Path) -> ShardReader:
    return ShardReader(place)


def row_of(found: Sample) -> int:
    return int(found.image[0, 0, 0])


def stream_of(shards: Path | ShardReader, batch_size: int = 4, **options: Any) -> CounterfactualStream:
    return CounterfactualStream(shards, batch_size, item=row_of, collate=list, window=2, **options)


def interleaved(per_rank: Sequence[list[Any]], first_batch: int = 0) -> list[Any]:
    """What the ranks were given side by side, in the order of the batches' numbers."""
    world = len(per_rank)
    assert len({len(batches) for batches in per_rank}) == 1  # equally many: no rank waits for another in vain
    steps = len(per_rank[0])
    return [per_rank[g % world][(g - first_batch) // world] for g in range(first_batch, first_batch + steps * world)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def given_to(
    reader: ShardReader, world: int, workers: int, state: dict[str, Any] | None = None, **options: Any
) -> list[list[list[int]]]:
    found = []
    for rank in range(world):
        stream = stream_of(reader, world=world, rank=rank, **options)
        if state is not None:
            stream.load_state_dict(state)
        found.append(list(stream.loader(num_workers=workers)))
    return found


def same_order(reader: ShardReader, workers: Sequence[int], seeds: Sequence[int]) -> None:
    for seed in seeds:
        expected = stream_of(reader, seed=seed).order(0).rows(0, 30).tolist()
        for count, world in itertools.product(workers, (1, 2, 3)):
            batches = interleaved(given_to(reader, world, count, seed=seed))
            assert len(batches) == 8 // world * world
            assert flat(batches) == expected[: 4 * len(batches)]  # the last of 8 is short: slices agree with that


def test_order_knows_neither_workers_nor_ranks(reader: ShardReader) -> None:
    same_order(reader, (0, 1, 2), (0, 1))


@pytest.mark.slow
def test_order_knows_neither_workers_nor_ranks_at_length(reader: ShardReader) -> None:
    same_order(reader, (0, 1, 2, 4), (0, 1, 2, 3, 4))


def test_the_order_within_a_window_has_numbers_of_its_own() -> None:
    def order(seed: int, epoch: int, shards: int, rows: int) -> np.ndarray:
        total = shards * rows
        starts = np.arange(0, total + 1, rows)
        return EpochOrder(starts, np.ones(total, bool), seed, epoch, window=shards).rows(0, total)

    alone = [order(seed, epoch, 1, 50).tolist() for seed in range(2) for epoch in range(2)]
    assert len(set(map(tuple, alone))) == 4  # of a single shard, too
    for epoch in range(5):
        shards = np.random.default_rng((0, epoch)).permutation(8)
        assert not np.array_equal(order(0, epoch, 8, 1), shards[shards])  # not the permutation of the shards again


def test_an_epoch_is_a_permutation_that_moves_with_seed_and_epoch(reader: ShardReader) -> None:
    chosen = [row for row in range(40) if row % 4 != 3]
    streams = [stream_of(reader, seed=seed) for seed in (0, 1)]
    orders = [tuple(stream.order(epoch).rows(0, 30).tolist()) for stream in streams for epoch in range(3)]
    assert len({*orders, tuple(chosen)}) == 7
    for order in orders:
        assert sorted(order) == chosen
    loader = streams[0].loader()
    assert [flat(list(loader)) for _ in range(3)] == [list(order) for order in orders[:3]]  # each begins the next
    shard = np.repeat(range(5), COUNTS)
    assert any(
        not {0, 1} & set(shard[list(order[:7])].tolist()) for order in orders
    )  # the shards themselves are permuted
    for order in orders:  # locality: two shards a window, so what is read at a time is of two shards
        met = list(dict.fromkeys(shard[list(order)].tolist()))
        windows = [met[:2], met[2:4], met[4:]]
        ends = [max(i for i, row in enumerate(order) if shard[row] in window) for window in windows]
        starts = [min(i for i, row in enumerate(order) if shard[row] in window) for window in windows]
        assert all(end + 1 == start for end, start in zip(ends, starts[1:]))
        within = [row for row in order if shard[row] in met[:2]]
        assert within != sorted(within)


def simulated(
    order: EpochOrder, batch: int, world: int, workers: int, first: int, steps: int | None = None
) -> tuple[list[int], int]:
    """What `world` consumers are given in `steps` steps by `workers` workers each (a DataLoader asks them in turn)."""
    total = len(order)
    per_rank = []
    for rank in range(world):
        lines = [dealt(total, batch, world, rank, first, worker, workers) for worker in range(workers)]
        mine = [span for turn in itertools.zip_longest(*lines) for span in turn if span is not None]
        assert len(mine) == rounds(total, batch, world, first)
        per_rank.append([order.rows(*span).tolist() for span in mine][:steps])
    rows = flat(interleaved(per_rank, -(-first // batch)))
    return rows, first + len(rows)


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any),
    seed=st.integers(0, 2**40),
    window=st.integers(1, 4),
    batch=st.integers(1, 6),
    parts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 6)), max_size=3),
    last=st.tuples(st.integers(1, 4), st.integers(1, 5)),
)
def test_law_whatever_happens_on_the_way_the_order_is_one(
    counts: list[int],
    seed: int,
    window: int,
    batch: int,
    parts: list[tuple[int, int, int]],
    last: tuple[int, int],
) -> None:
    """Stop after any number of steps, continue with other workers and another world: a prefix of one permutation."""
    starts = np.cumsum([0, *counts], dtype=np.int64)
    order = EpochOrder(starts, np.ones(starts[-1], bool), seed, 3, window)
    total, first, rows = len(order), 0, list[int]()
    for world, workers, steps in parts:
        came, first = simulated(order, batch, world, workers, first, steps)
        rows += came
    came, _ = simulated(order, batch, *last, first)
    rows += came
    assert rows == order.rows(0, len(rows)).tolist()
    assert sorted(order.rows(0, total).tolist()) == list(range(total))
    assert total - len(rows) < last[0] * batch  # fewer than `world` batches are dropped,
    assert last[0] > 1 or len(rows) == total  # and none where there is one rank


def consumed(reader: ShardReader, steps: int, workers: int, world: int = 1, rank: int = 0) -> tuple[list, dict]:
    """The first `steps` batches and the state after them; the workers have read on meanwhile."""
    stream = stream_of(reader, world=world, rank=rank, seed=5)
    stream.set_epoch(2)
    batches = list(itertools.islice(stream.loader(num_workers=workers), steps))
    return batches, stream.state_dict()


def test_resume_after_every_batch_with_other_workers_decodes_nothing_twice(reader: ShardReader) -> None:
    whole = stream_of(reader, seed=5).order(2).rows(0, 30).tolist()
    for steps, workers in zip(range(9), itertools.cycle((2, 1, 0))):
        batches, state = consumed(reader, steps, workers)
        assert (state["epoch"], state["consumed"]) == (2, min(4 * steps, 30))
        again = stream_of(reader, seed=5)
        again.load_state_dict(state)
        again.set_epoch(2)  # as a loop does, at the head of its epoch
        read = Counter[int]()
        original = ShardReader.sample

        def counted(self: ShardReader, i: int, read: Counter[int] = read, original: Any = original) -> Sample:
            read[i] += 1
            return original(self, i)

        with mock.patch.object(ShardReader, "sample", counted):
            rest = list(again.loader())
        assert flat(batches + rest) == whole
        assert read == Counter(whole[4 * steps :])
        assert again.epoch == 3
        if steps % 3 == 1:
            again.load_state_dict(state)
            assert flat(batches + list(again.loader(num_workers=2 - workers % 2))) == whole


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 2)])
def test_resume_in_another_world(reader: ShardReader, before: int, after: int) -> None:
    whole = stream_of(reader, seed=5).order(2).rows(0, 30).tolist()
    found = [consumed(reader, 2, 1, before, rank) for rank in range(before)]
    states = [state for _, state in found]
    assert all(state == states[0] for state in states)  # rank 0 may save for all
    rows = flat(interleaved([batches for batches, _ in found]))
    rest = given_to(reader, after, 1, states[0], seed=5)
    rows += flat(interleaved(rest, 2 * before))
    assert rows == whole[: len(rows)]
    assert 30 - len(rows) < 4 * after


def test_a_break_begins_again_and_a_whole_epoch_goes_on(reader: ShardReader) -> None:
    stream = stream_of(reader)
    loader = stream.loader(num_workers=1)
    first = next(iter(loader))
    assert stream.state_dict()["consumed"] == 4
    assert next(iter(loader)) == first
    stream.set_epoch(0)
    assert stream.state_dict()["consumed"] == 4  # the present epoch: nothing changes
    assert len(list(loader)) == len(loader) == len(stream) == 8
    assert (stream.epoch, stream.state_dict()["consumed"]) == (1, 0)
    stream.set_epoch(0)
    assert next(iter(loader)) == first


def test_persistent_workers_see_the_epoch_that_is_set(reader: ShardReader) -> None:
    stream = stream_of(reader, seed=1)
    loader = stream.loader(num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        assert flat(loader) == stream.order(epoch).rows(0, 30).tolist()


def test_items_are_images_and_codes(reader: ShardReader) -> None:
    images, targets = next(iter(CounterfactualStream(reader, 5, classes={"a": 7, "b": 3}).loader()))
    assert (images.dtype, images.shape) == (torch.uint8, (5, 3, SIZE, SIZE + 1))
    assert targets.tolist() == [(7, 3)[int(row) % 2] for row in images[:, 0, 0, 0]]
    seen = list[type]()

    def transform(image: Image.Image) -> torch.Tensor:
        seen.append(type(image))
        return v2.functional.pil_to_tensor(image).float() / 255

    images, targets = next(iter(CounterfactualStream(reader, 5, transform=transform, classes=["a", "b"]).loader()))
    assert images.dtype == torch.float32
    assert seen == [Image.Image] * 5
    assert targets.tolist() == [round(float(image[0, 0, 0]) * 255) % 2 for image in images]


def test_kinds_are_those_asked_for(reader: ShardReader) -> None:
    for kinds, expected in ((["null"], [3]), (["counterfactual"], [0, 1, 2]), (["null", "counterfactual"], range(4))):
        stream = stream_of(reader, kinds=kinds)
        rows = flat(list(stream.loader()))
        assert sorted(rows) == [row for row in range(40) if row % 4 in expected]


def test_as_webdataset_gives_them(reader: ShardReader) -> None:
    def fields(found: Sample) -> dict[str, Any]:
        return {"__key__": found.key, "png": found.image, "json": found.record}

    (batch, *_) = CounterfactualStream(reader, 3, item=fields, collate=list).loader(num_workers=1)
    assert [set(item) for item in batch] == [{"__key__", "png", "json"}] * 3
    assert all(item["json"]["key"] == item["__key__"] for item in batch)


def test_world_and_rank_are_those_of_torch_distributed_in_spawned_workers_too(reader: ShardReader) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    stream = stream_of(reader)  # made before the process group, as often
    loader = stream.loader(num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
    torch.distributed.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
    try:
        for epoch in (0, 3):
            stream.set_epoch(epoch)
            order = stream.order(epoch).rows(0, 30).tolist()
            assert list(loader) == [order[4:8], order[16:20]]
    finally:
        torch.distributed.destroy_process_group()


def killed(found: Sample) -> int:
    if get_worker_info() is not None and row_of(found) % 8 == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return row_of(found)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # torch waits 5 s for the other one
def test_a_killed_worker_is_an_error_and_no_silence(reader: ShardReader, workers: int) -> None:
    loader = CounterfactualStream(reader, 4, item=killed, collate=list).loader(num_workers=workers)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed by signal|exited unexpectedly)"):
        list(loader)
    gc.collect()  # else torch's iterator goes in a later test, and waits there for workers that inherited this one's pipe


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_removed_while_it_runs_is_one_line(tmp_path: Path, workers: int) -> None:
    stream = CounterfactualStream(write(tmp_path / "shards"), 2, item=row_of, collate=list, window=1)
    batches = iter(stream.loader(num_workers=workers, **({"prefetch_factor": 1} if workers else {})))
    next(batches)
    for tar in (tmp_path / "shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(ShardError, match=r"cf-train-00000\d\.tar, sample 'train-.*is gone now: put it back") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_names_the_sample(reader: ShardReader) -> None:
    with pytest.raises(DataError, match=r"cf-train-.*sample 'train-.*classes a, c, came 'b'") as caught:
        list(CounterfactualStream(reader, 4, classes=["a", "c"]).loader())
    assert "\n" not in str(caught.value)


def test_the_leak_guard_names_the_sample(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", split="val")
    with pytest.raises(DataError, match=r"sample 'val-000000-0' of split 'val'"):
        stream_of(shards)
    assert len(stream_of(shards, guard=False)) == 8


BAD: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
    ({"window": 0}, "window: expected"),
    ({"seed": -1}, "seed: expected"),
    ({"kinds": ["real"]}, "kinds: expected"),
    ({"kinds": "null"}, "kinds: expected .* in a list"),
    ({"kinds": []}, "kinds: expected"),
    ({"world": 2}, "rank: expected"),
    ({"world": 2, "rank": 2}, "rank: expected"),
    ({"classes": None}, "classes: expected the class names"),
    ({"classes": "ab"}, "classes: expected a list"),
    ({"classes": ["a", "a"]}, "classes: expected every name once"),
    ({"item": row_of}, "item: expected"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_wrong_arguments_are_refused_in_a_line(reader: ShardReader, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CounterfactualStream(reader, **{"batch_size": 4, "classes": ["a", "b"], **wrong})


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 8}, {"in_order": False}, {"shuffle": True}, {"drop_last": True}], ids=str
)
def test_a_loader_leaves_the_order_to_the_stream(reader: ShardReader, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))}: expected none in loader"):
        stream_of(reader).loader(**wrong)
    stream_of(reader).loader(batch_size=None, in_order=True)


def test_too_few_samples_and_items_that_do_not_stack(tmp_path: Path, reader: ShardReader) -> None:
    with pytest.raises(UsageError, match="a batch for each of 3 ranks, 30 samples"):
        list(stream_of(reader, 16, world=3, rank=0).loader())
    with pytest.raises(UsageError, match="items: expected such as torch's default_collate can stack") as caught:
        next(iter(CounterfactualStream(reader, 4, transform=lambda image: image, classes=["a", "b"]).loader()))
    assert "\n" not in str(caught.value)
    write_shard(tmp_path, "cf-train-000000.tar", [sample(0, 0), sample(0, 1)], "p" * 64, "m" * 64)
    with pytest.raises(DataError, match="expected null samples, it has none"):
        stream_of(tmp_path, kinds=["null"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "expected seed=0 .*it was saved with 1"),
        ({"window": 3}, "expected window=2 .*it was saved with 3"),
        ({"kinds": ["null"]}, "expected kinds"),
        ({"fingerprint": "f" * 64}, "expected fingerprint=.*the shards are others"),
        ({"consumed": 6, "batch_size": 3}, "expected whole batches of 4, .* in batches of 3"),
        ({"consumed": 31}, "at most 30 consumed"),
        ({"epoch": -1}, "epoch: expected a whole number"),
        ({"model": "m"}, "expected epoch, consumed, .*; pass what state_dict"),
    ],
)
def test_a_state_of_another_order_is_refused(reader: ShardReader, change: dict[str, Any], message: str) -> None:
    state = stream_of(reader).state_dict()
    stream = stream_of(reader)
    with pytest.raises(UsageError, match=f"state: .*{message}") as caught:
        stream.load_state_dict({**state, **change})
    assert "\n" not in str(caught.value)
    assert stream.state_dict() == state
    stream.load_state_dict({**state, "consumed": 8, "batch_size": 8})  # ends where one of 4 ends: the same order
    assert next(iter(stream.loader())) == stream.order().rows(8, 12).tolist()


def test_batches_taken_past_the_loader_are_not_counted_silently(reader: ShardReader) -> None:
    stream = stream_of(reader)
    plain = [batch for batch in DataLoader(stream, batch_size=None, num_workers=2)]
    assert flat(plain) == stream.order().rows(0, 30).tolist()
    with pytest.raises(UsageError, match="use loader"):
        stream.state_dict()
    stream.set_epoch(1)
    assert stream.state_dict()["epoch"] == 1


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1"),
        ("ENDPOINT_URL", f"http://{host}:{port}"), ("EC2_METADATA_DISABLED", "true"),
    ):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/run/shards"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture
def memory() -> str:
    return "memory://stream/shards"


@pytest.mark.parametrize("store", ["s3", "memory"])
def test_remote_shards_stream_as_local_ones(
    place: Path, reader: ShardReader, store: str, request: pytest.FixtureRequest
) -> None:
    import fsspec

    url = request.getfixturevalue(store)
    files, path = fsspec.core.url_to_fs(url)
    for file in place.iterdir():
        if file.is_file():
            files.pipe_file(f"{path}/{file.name}", file.read_bytes())
    stream, local = stream_of(url), stream_of(reader)
    batches = list(itertools.islice(stream.loader(num_workers=1), 2))
    local.load_state_dict(stream.state_dict())  # the shards are the same wherever they are
    rows = flat(batches + list(local.loader()))
    assert rows == local.order(0).rows(0, 30).tolist()


def test_every_error_is_of_ours(place: Path) -> None:
    with pytest.raises(CfaugError, match="generate first"):
        stream_of(place / "nothing")
