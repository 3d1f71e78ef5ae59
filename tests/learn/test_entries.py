"""The ways into a training loop ask the same of their arguments, refuse the same data, and take options by name only."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import CfaugError, DataError, UsageError
from cfaug.learn import CounterfactualDataset, CounterfactualStream, MixingCollate, RandomCounterfactual
from cfaug.learn.albumentations import RandomCounterfactual as Twin
from cfaug.learn.albumentations import SeededAugmentation
from cfaug.learn.checks import policy_shares, same_state, shares, whole
from cfaug.learn.epochs import Epochs
from cfaug.learn.guard import refuse_split
from cfaug.offline.read import ShardReader

DRAWING: list[Callable[..., Any]] = [RandomCounterfactual, Twin, MixingCollate]


def every(base: Any) -> list[Callable[..., Any]]:
    def wrapped(shards: Any, p: Any = 0.5, **options: Any) -> Any:
        return CounterfactualDataset(base, shards, p=p, **options)

    return [*DRAWING, wrapped]


@pytest.mark.parametrize("wrong", ["0.5", True, np.True_, float("nan"), -0.1, 1.1, [0.5], 1 + 1j], ids=repr)
def test_a_probability_is_a_number(base: ArrayDataset, shards: Path, wrong: Any) -> None:
    for entry in every(base):
        for name in ("p", "null_p"):
            with pytest.raises(UsageError, match=rf"^{name}: expected a probability from 0 to 1, came") as caught:
                entry(shards, **{"p": 0.0, name: wrong})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("right", [0, 1, 0.25, np.float32(0.25), np.float64(1)], ids=repr)
def test_any_number_is_a_probability(base: ArrayDataset, shards: Path, right: Any) -> None:
    assert [entry(shards, right).p for entry in every(base)] == [float(right)] * 4
    with pytest.raises(UsageError, match=r"p \+ null_p: expected at most 1"):
        shares(0.7, 0.4)
    assert policy_shares(0.7, 0.4, "append") == (0.7, 0.4)
    assert policy_shares(None, 0.4, "pairs") == (0.6, 0.4)


@pytest.mark.parametrize(
    "wrong", ["a", None, True, 1.5, -1, float("nan"), float("inf"), [1], torch.tensor(1.5), np.eye(3)], ids=str
)
def test_seeds_epochs_and_sizes_are_whole(base: ArrayDataset, shards: Path, wrong: Any) -> None:
    made: list[tuple[str, Callable[[], Any]]] = [
        ("seed", lambda: MixingCollate(shards, seed=wrong)),
        ("seed", lambda: CounterfactualDataset(base, shards, seed=wrong)),
        ("seed", lambda: CounterfactualStream(shards, 4, classes=["0", "1"], seed=wrong)),
        ("batch_size", lambda: CounterfactualStream(shards, wrong, classes=["0", "1"])),
        ("seed", lambda: SeededAugmentation(base, Twin(shards), seed=wrong)),
        ("epoch", lambda: Epochs().set_epoch(wrong)),
        ("epoch", lambda: CounterfactualStream(shards, 4, classes=["0", "1"]).set_epoch(wrong)),
    ]
    for name, make in made:
        with pytest.raises(UsageError, match=rf"^{name}: expected a whole number of at least \d, came") as caught:
            make()
        assert "\n" not in str(caught.value)
    assert [whole("seed", value) for value in (3, 3.0, np.int64(3), np.float64(3), torch.tensor(3))] == [3] * 5


def test_options_are_named(base: ArrayDataset, shards: Path) -> None:
    for entry in DRAWING:
        with pytest.raises(TypeError, match="positional"):
            entry(shards, 0.5, 0.2)
    with pytest.raises(TypeError, match="positional"):
        CounterfactualStream(shards, 4, v2.PILToTensor())  # type: ignore[misc]


def test_held_out_images_enter_by_no_way(base: ArrayDataset, shards: Path) -> None:
    ways = [*every(base), lambda shards, **o: CounterfactualStream(shards, 4, classes=["0", "1"], **o)]
    for entry in ways:
        entry(shards, held_out=[source("test", 9)])
        with pytest.raises(DataError, match=r"whose source is image 0 of held_out\[1\]"):
            entry(shards, held_out=[source("test", 9), Subset(base, [5])])


def test_what_is_held_out_can_be_compared(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrongs: list[tuple[Any, str]] = [
        (base, r"held_out: expected data sets in a list, came ArrayDataset"),
        ({"val": base}, r"held_out: expected data sets in a list, came dict"),
        ("D/test", r"held_out: expected data sets in a list, came str"),
        ([source("test"), "D/test"], r"held_out\[1\]: expected .*came str"),
    ]
    for wrong, says in wrongs:
        with pytest.raises(UsageError, match=f"^{says}") as caught:
            RandomCounterfactual(shards, held_out=wrong)
        assert "\n" not in str(caught.value)
    RandomCounterfactual(shards, held_out=(data for data in [source("test")]))
    assert not caplog.records
    RandomCounterfactual(shards, held_out=[[(base[i][0].crop((1, 1, 7, 6)), 0) for i in range(N)]])
    assert "held_out[0] was not compared with anything: its images are 6 x 5 pixels" in caplog.text
    assert "the shards' sources 8 x 8 pixels; give it as it is before it is cropped" in caplog.text


def split(name: Any, **more: Any) -> Any:
    return SimpleNamespace(split=name, **more)


class Wrapped(torch.utils.data.Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]


@pytest.mark.parametrize("name", ["val", "validation", "Test", "test[:50%]", "train+test", "dev"])
def test_validation_and_test_are_refused_wherever_they_stand(base: ArrayDataset, shards: Path, name: str) -> None:
    said = split(name)
    with pytest.raises(UsageError, match=r"^base: expected the train split, came split '(?i:val|test|dev)"):
        refuse_split(said)
    other = ArrayDataset(base.images, base.table, base.schema, "train")
    object.__setattr__(other, "split", name)
    for inside in (other, Subset(other, range(10)), ConcatDataset([base, other]), Wrapped(Subset(other, range(5)))):
        with pytest.raises(UsageError, match="validation and test are not augmented"):
            CounterfactualDataset(inside, shards)
        CounterfactualDataset(inside, shards, guard=False)
    refuse_split(split("train"))
    refuse_split(split("train[:50%]"))
    refuse_split(split("trainval"))
    with pytest.raises(UsageError, match="came split 'test'"):
        refuse_split(SimpleNamespace(train=False))


def test_a_loader_keeps_the_streams_checkpoint(shards: Path) -> None:
    def made() -> Any:
        return CounterfactualStream(shards, 4, classes=["0", "1"], seed=2).loader(num_workers=1)

    loader = made()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    assert state["consumed"] == 12
    assert state == loader.stream.state_dict()
    rest = [batch[0] for batch in batches]
    again = made()
    again.load_state_dict(state)
    assert all(torch.equal(one, batch[0]) for one, batch in zip(rest, again, strict=True))
    for wrong in (None, [], {}, {**state, "epoch": "a"}, {**state, "consumed": 1.5}, {**state, "consumed": True}):
        with pytest.raises(UsageError, match=r"^state: ") as caught:
            again.load_state_dict(wrong)
        assert "\n" not in str(caught.value)


def test_a_loop_that_ends_in_mid_epoch_ends_quietly(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = iter(CounterfactualStream(shards, 4, classes=["0", "1"]).loader())
    next(batches)
    monkeypatch.setattr("cfaug.learn.stream.CfaugError", None)  # as at the interpreter's end
    batches.close()


def test_the_epoch_reaches_a_mixture_below_a_subset(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards)
    augmented = SeededAugmentation(Subset(mixed, range(10)), Twin(shards))
    augmented.set_epoch(3)
    assert mixed.epoch == 3
    deep = ConcatDataset([base, Subset(Subset(mixed, range(10)), range(5))])
    SeededAugmentation(deep, Twin(shards)).set_epoch(4)
    assert mixed.epoch == 4


def test_states_are_compared_by_name() -> None:
    mine = {"epoch": 1, "seed": 3, "shards": "a"}
    same_state({**mine, "epoch": 7}, mine, frozenset({"epoch"}), "thing")
    with pytest.raises(
        UsageError, match="expected seed=3 as in this thing, it was saved with 4: the draws would be others"
    ):
        same_state({**mine, "seed": 4}, mine, frozenset({"epoch"}), "thing")
    with pytest.raises(UsageError, match="the shards are others"):
        same_state({**mine, "shards": "b"}, mine, frozenset({"epoch"}), "thing")


def values(images: Any) -> list[int]:
    """The value of each image that is constant, 0 for the others."""
    return [int(image[0, 0, 0]) if len(np.unique(image)) == 1 else 0 for image in images]


def test_the_twin_draws_nulls_as_the_others_do(base: ArrayDataset, shards: Path) -> None:
    twin = Twin(shards, p=0.4, null_p=0.3)
    twin.set_random_seed(0)
    kinds = np.array(values(twin(image=base.image(i % N))["image"] for i in range(800)))
    share = [np.isin(kinds, kind).mean() for kind in ([1, 11], [21], [0])]
    # 800 draws: four standard errors
    assert np.abs(np.array(share) - [0.4, 0.3, 0.3]).max() < 4 * np.sqrt(0.25 / 800)
    assert (twin.seen, twin.matched, twin.swapped) == (800, 800, int((kinds > 0).sum()))
    only = Twin(shards, p=0.0, null_p=1.0)
    assert set(values(only(image=base.image(i))["image"] for i in range(9))) == {21}


def test_the_twin_counts_calls_that_interleave(base: ArrayDataset, shards: Path) -> None:
    """Another thread's call between a call's apply and its end; a context is what a thread has of its own."""
    twin = Twin(shards, p=1.0)
    apply, other = twin.apply, contextvars.copy_context()

    def interrupted(img: Any, **params: Any) -> Any:
        made = apply(img, **params)
        twin.p = 0.0
        other.run(twin.__call__, image=base.image(1))  # stays real
        return made

    twin.targets["image"] = interrupted
    twin._key2func["image"] = interrupted
    twin(image=base.image(0))
    assert (twin.seen, twin.swapped) == (2, 1)


def test_collate_says_what_is_missing(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = MixingCollate(shards, transform=v2.PILToTensor(), then=lambda images, labels: (images, labels))
    image = base[0][0]
    for alone in ([image, image], [(image,), (image,)]):
        with pytest.raises(UsageError, match="then: expected samples of an image and a label, came images alone"):
            mixed(alone)
    with pytest.raises(CfaugError, match="give MixingCollate the transform"):
        mixed([(torch.rand(3, 8, 8), 1)])
    other = source(seed=9)
    plain = MixingCollate(shards, transform=v2.PILToTensor())
    for _ in range(3):
        plain([other[i] for i in range(N)])
    assert "MixingCollate knew none of the first 100" in caplog.text
    assert "RandomCounterfactual" not in caplog.text


def test_an_image_is_looked_up_once(base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, lookup = [], ShardReader.lookup
    monkeypatch.setattr(ShardReader, "lookup", lambda self, image: (asked.append(1), lookup(self, image))[1])
    MixingCollate(shards, 1.0, transform=v2.PILToTensor())([base[i] for i in range(N)])
    assert len(asked) == N
