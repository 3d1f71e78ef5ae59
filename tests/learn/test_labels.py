"""What a label is compared as with the classes of the shards, where it was taken from, and what is no class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source, write
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder

from cfaug.data import ArrayDataset
from cfaug.errors import DataError
from cfaug.learn import CounterfactualDataset
from cfaug.learn.labels import Labels, class_in
from cfaug.learn.swap import open_base


class Labelled(Dataset[Any]):
    """PIL images and ``make(image, label)`` of them."""

    def __init__(
        self, data: ArrayDataset, labels: list[Any], make: Callable[[Any, Any], Any] = lambda *pair: pair
    ) -> None:
        self.images, self.labels, self.make = [data[i][0] for i in range(len(data))], labels, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.make(self.images[i], self.labels[i])


def one_hot(y: int) -> list[int]:
    return [int(k == y) for k in range(3)]


CLASSES: dict[str, Callable[[int], Any]] = {
    "tensor (1,)": lambda y: torch.tensor([y]),
    "tensor (1, 1)": lambda y: torch.tensor([[y]]),
    "array (1,)": lambda y: np.array([y]),
    "list": lambda y: [y],
    "tuple of a tensor": lambda y: (torch.tensor(y),),
    "text in a list": lambda y: [f"class {y}"],
    "float": float,
    "tensor of a float": lambda y: torch.tensor(float(y)),
    "bfloat16 (1,)": lambda y: torch.tensor([float(y)], dtype=torch.bfloat16),
    "one-hot tensor": lambda y: torch.tensor(one_hot(y)).float(),
    "one-hot array": lambda y: np.array([one_hot(y)]) == 1,
    "one-hot list": one_hot,
}


@pytest.mark.parametrize("form", CLASSES)
def test_a_class_is_one_in_every_form(base: ArrayDataset, shards: Path, form: str, caplog: Any) -> None:
    make = CLASSES[form]
    CounterfactualDataset(Labelled(base, [make(2 - i % 2) for i in range(N)]), shards)
    merged = Labelled(base, [make(1) for _ in range(N)])
    with pytest.raises(
        DataError, match=r"expected one target per label .* labels taken from item\[1\]\); check_labels="
    ):
        CounterfactualDataset(merged, shards)
    CounterfactualDataset(merged, shards, check_labels=False)
    assert not caplog.records


NO_CLASSES: dict[str, Callable[[int], Any]] = {
    "regression": lambda i: i % 4 / 2,
    "infinite": lambda i: float("inf"),
    "multi-hot": lambda i: torch.tensor([1, i % 2, 0]),
    "none hot": lambda i: np.zeros(3),
    "soft": lambda i: torch.tensor([0.9, 0.1]),
    "two numbers": lambda i: (i % 2, 5),
    "boxes": lambda i: {"boxes": torch.zeros(1, 4), "labels": torch.tensor([1])},
    "lists of several lengths": lambda i: [[1], [1, 2]],
    "captions": lambda i: "a word, " * 30,
    "indices": lambda i: i,
    "names": lambda i: f"{i}.png",
    "indices in lists": lambda i: [torch.tensor(i)],
}


@pytest.mark.parametrize("form", NO_CLASSES)
def test_labels_that_are_no_classes_are_told(base: ArrayDataset, shards: Path, form: str, caplog: Any) -> None:
    data = Labelled(base, [NO_CLASSES[form](i) for i in range(N)])
    mixed = CounterfactualDataset(data, shards, p=1.0)
    assert mixed[3][1] is data.labels[3]
    (told,) = caplog.records
    assert told.levelname == "WARNING"
    assert "the labels of the base (from item[1]) are not compared with the classes of the shards" in told.getMessage()
    assert "check_labels=False if that is right" in told.getMessage()
    assert "\n" not in told.getMessage()
    caplog.clear()
    CounterfactualDataset(data, shards, check_labels=False)
    assert not caplog.records


def test_images_without_a_label_are_passed_over(base: ArrayDataset, shards: Path, caplog: Any) -> None:
    for missing in (None, float("nan"), torch.tensor(float("nan"))):
        CounterfactualDataset(Labelled(base, [missing if i % 5 == 0 else i % 2 for i in range(N)]), shards)
        with pytest.raises(DataError, match="expected one target per label"):
            CounterfactualDataset(Labelled(base, [missing if i % 5 == 0 else 1 for i in range(N)]), shards)
    CounterfactualDataset(Labelled(base, list(range(N)), lambda image, label: image), shards)
    assert not caplog.records


def test_labels_that_are_not_found_are_told(base: ArrayDataset, shards: Path, caplog: Any) -> None:
    import datasets

    wrong = [i % 3 for i in range(N)]
    beside: list[Callable[[Any, Any], Any]] = [
        lambda image, y: {"pixel_values": image, "diagnosis": y, "id": 3},
        lambda image, y: (y, image),
        lambda image, y: {"id": 3, "at": 5, "views": {"image": image, "y": y}},
    ]
    images = [base[i][0] for i in range(N)]
    columns = {"image": images, "digit": wrong, "colour": wrong}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    ways: list[Any] = [Labelled(base, wrong, make) for make in beside]
    ways += [table, Subset(table, range(N))]
    for data in ways:
        caplog.clear()
        CounterfactualDataset(data, shards)
        (told,) = caplog.records
        assert told.levelname == "WARNING"
        assert "are not compared with the classes of the shards: none is found in an item; call it" in told.getMessage()
        assert "\n" not in told.getMessage()
    caplog.clear()
    CounterfactualDataset(ways[0], shards, check_labels=False)
    empty = table.add_column("label", [None] * N)  # a label there is, of no image
    for silent in (
        Labelled(base, wrong, lambda image, y: image),
        Labelled(base, wrong, lambda image, y: (image,)),
        empty,
    ):
        CounterfactualDataset(silent, shards)
    assert not caplog.records


def test_a_few_images_may_all_have_classes_of_their_own(base: ArrayDataset, shards: Path) -> None:
    few = Subset(Labelled(base, list(range(N))), range(15))  # fewer say nothing
    with pytest.raises(DataError, match="expected one target per label"):
        CounterfactualDataset(few, shards)


def test_as_many_classes_as_images_are_compared(tmp_path: Path, base: ArrayDataset, caplog: Any) -> None:
    data = source()
    data.table["digit"] = [f"class {i}" for i in range(N)]
    CounterfactualDataset(Labelled(base, list(range(N))), write(tmp_path / "shards", data))
    assert not caplog.records


def test_the_error_names_what_was_taken_for_the_label(tmp_path: Path, base: ArrayDataset, shards: Path) -> None:
    import datasets

    wrong = [i % 3 for i in range(N)]
    stored = Labelled(base, wrong)
    stored.targets = wrong  # type: ignore[attr-defined]
    named = Labelled(base, wrong, lambda image, label: {"image": image, "caption": label})
    deep = Labelled(base, wrong, lambda image, label: ({"id": 3}, (image, label)))
    images = [base[i][0] for i in range(N)]
    columns = datasets.Dataset.from_dict({"image": images, "place": wrong}).cast_column("image", datasets.Image())
    for i, image in enumerate(images):
        (tmp_path / str(wrong[i])).mkdir(exist_ok=True)
        image.save(tmp_path / str(wrong[i]) / f"{i}.png")
    folder, changed = ImageFolder(tmp_path), ImageFolder(tmp_path, target_transform=lambda label: label + 1)
    for data, where in (
        (stored, ".targets"), (named, "item['caption']"), (deep, "item[1][1]"), (columns, "item['place']"),
        (Subset(columns, range(N)), "item['place']"), (folder, ".targets"), (changed, ".targets"),
        (ConcatDataset([folder, changed]), ".targets"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            CounterfactualDataset(data, shards)
        assert f"disagree, labels taken from {where}); check_labels=False if these are no labels" in str(caught.value)
        assert "\n" not in str(caught.value)
    two = source()
    two.table["digit"] = "0"
    with pytest.raises(DataError, match="labels taken from column 'digit'"):
        CounterfactualDataset(two, shards)


def test_a_class_is_read_off() -> None:
    for label, want in (
        (True, True),
        (np.float32(3), 3),
        ("a", "a"),
        ([["b"]], "b"),
        (np.array(4), 4),
        ([], None),
        (b"a", None),
    ):
        assert class_in(label) == want
    assert class_in(torch.tensor([0.0, 1.0], requires_grad=True)) == 1
    for several in (torch.eye(2), [[0, 0], [0, 1]], ["0", "1"], [0, 1, None]):
        assert class_in(several) is None


@pytest.mark.parametrize("kind", [int, str, np.int64, torch.tensor, lambda c: ("seven", "nine")[c]])
def test_labels_may_be_in_a_different_order(base: ArrayDataset, shards: Path, kind: Callable[[int], Any]) -> None:
    labels = [kind(1 - i % 2) for i in range(N)]
    assert CounterfactualDataset(Labelled(base, labels), shards, p=1.0)[3][1] == labels[3]


@pytest.mark.parametrize(
    "labels",
    [[i % 3 for i in range(N)], [0] * N, ["cat" if i % 4 == 0 else "dog" for i in range(N)]],
    ids=("3", "1", "2"),
)
def test_different_classes_are_refused(base: ArrayDataset, shards: Path, labels: list[Any]) -> None:
    with pytest.raises(DataError, match="these are not the classes that the shards were made for") as caught:
        CounterfactualDataset(Labelled(base, labels), shards)
    assert "\n" not in str(caught.value)
    mixed = CounterfactualDataset(Labelled(base, labels), shards, p=1.0, check_labels=False)
    assert [mixed[i][1] for i in range(N)] == labels
    CounterfactualDataset(Labelled(base, labels), shards, guard=False)


def test_a_few_labels_may_differ(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = [1 - i % 2 if i in (3, 20) else i % 2 for i in range(N)]
    assert CounterfactualDataset(Labelled(base, labels), shards, p=1.0)[3][1] == labels[3]
    assert "so in 2 of 40 images: the base's label counts" in caplog.text


def test_stored_labels_count_only_where_items_have_them(base: ArrayDataset) -> None:
    data = Labelled(base, [i % 2 for i in range(N)])
    data.targets = [7] * N  # type: ignore[attr-defined]
    labels = Labels(open_base(data))
    assert ([labels[i] for i in range(4)], labels.source) == ([0, 1, 0, 1], "item[1]")
    data.targets = data.labels  # type: ignore[attr-defined]
    for whole in (data, Subset(data, range(4)), ConcatDataset([data, Subset(data, [3])])):
        labels = Labels(open_base(whole))
        assert ([labels[i] for i in range(4)], labels.source) == ([0, 1, 0, 1], ".targets")
