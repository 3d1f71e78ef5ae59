"""What a label is compared as with the classes of the shards, where it was taken from, and what is no class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source, write
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import DataError
from cfaug.learn import CounterfactualDataset
from cfaug.learn.label_check import class_in


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
        DataError, match=r"expected one target for each label, .* labels taken from item\[1\]; check_labels="
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
def test_what_is_no_class_is_not_compared_and_that_is_told(
    base: ArrayDataset, shards: Path, form: str, caplog: Any
) -> None:
    data = Labelled(base, [NO_CLASSES[form](i) for i in range(N)])
    mixed = CounterfactualDataset(data, shards, p=1.0)
    assert mixed[3][1] is data.labels[3]
    (told,) = caplog.records
    assert told.levelname == "WARNING"
    assert "the labels of the base (item[1]) are not compared with the classes of the shards" in told.getMessage()
    assert "check_labels=False if that is right" in told.getMessage()
    assert "\n" not in told.getMessage()
    caplog.clear()
    CounterfactualDataset(data, shards, check_labels=False)
    assert not caplog.records


def test_images_without_a_label_are_passed_over(base: ArrayDataset, shards: Path, caplog: Any) -> None:
    for missing in (None, float("nan"), torch.tensor(float("nan"))):
        CounterfactualDataset(Labelled(base, [missing if i % 5 == 0 else i % 2 for i in range(N)]), shards)
        with pytest.raises(DataError, match="expected one target for each label"):
            CounterfactualDataset(Labelled(base, [missing if i % 5 == 0 else 1 for i in range(N)]), shards)
    CounterfactualDataset(Labelled(base, list(range(N)), lambda image, label: image), shards)
    assert not caplog.records


def test_labels_that_are_not_found_are_told(base: ArrayDataset, shards: Path, caplog: Any) -> None:
    import datasets

    wrong = [i % 3 for i in range(N)]
    beside: list[tuple[Callable[[Any, Any], Any], str]] = [
        (lambda image, y: {"pixel_values": image, "diagnosis": y, "id": 3}, "item['diagnosis'], item['id']"),
        (lambda image, y: (y, image), "item[0]"),
        (lambda image, y: {"a": 0, "b": 1, "c": 2, "d": 3, "image": image}, "item['a'], item['b'], item['c'] and others"),
        (lambda image, y: {"id": 3, "at": 5, "views": {"image": image, "y": y}}, "item['id'], item['at'], item['views']['y']"),
    ]  # fmt: skip
    images = [base[i][0] for i in range(N)]
    columns = {"image": images, "digit": wrong, "colour": wrong}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    ways = [(Labelled(base, wrong, make), said) for make, said in beside]
    ways += [(table, "item['digit'], item['colour']"), (Subset(table, range(N)), "item['digit'], item['colour']")]
    for data, said in ways:
        caplog.clear()
        CounterfactualDataset(data, shards)
        (told,) = caplog.records
        assert told.levelname == "WARNING"
        assert (
            f"are not compared with the classes of the shards: none is found among {said}; call it" in told.getMessage()
        )
        assert "\n" not in told.getMessage()
    caplog.clear()
    CounterfactualDataset(ways[0][0], shards, check_labels=False)
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
    with pytest.raises(DataError, match="expected one label of the base for each target"):
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
        (stored, ".targets"), (named, "item['caption']"), (deep, "item[1][1]"), (columns, "column 'place'"),
        (Subset(columns, range(N)), "column 'place'"), (StackDataset(folder, ["note"] * N), "the folders"),
        (StackDataset(images, wrong), "item[1]"), (folder, "the folders"), (changed, "the folders, by target_transform"),
        (ConcatDataset([folder, changed]), "the folders, the folders, by target_transform"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            CounterfactualDataset(data, shards)
        assert f"disagree, labels taken from {where}; check_labels=False if these are no labels" in str(caught.value)
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


def test_an_image_of_another_mode_or_size_says_so(tmp_path: Path, base: ArrayDataset) -> None:
    """The key is right and the loader makes something else of the file."""
    shards = write(tmp_path / "shards", source())
    grey, cut = v2.Grayscale(), v2.CenterCrop(6)
    cases: list[tuple[Callable[[Any], Any], str]] = [
        (grey, "(came mode L, the samples are mode RGB)"),
        (cut, "(came 6 x 6 pixels, the samples are 8 x 8 pixels)"),
        (lambda image: cut(grey(image)), "(came mode L, the samples are mode RGB; came 6 x 6 pixels, the samples are 8 x 8 pixels)"),
        (lambda image: v2.functional.pil_to_tensor(grey(image)), "(came mode L, the samples are mode RGB)"),
        (lambda image: np.array(image.convert("RGBA"))[::-1], "(came mode RGBA, the samples are mode RGB)"),
        (lambda image: grey(image).convert("I;16"), "(came mode I;16, the samples are mode RGB)"),
        (lambda image: v2.functional.vflip(image), ""),
    ]  # fmt: skip
    for change, said in cases:
        data = Labelled(base, [i % 2 for i in range(N)], lambda image, label, change=change: (change(image), label))
        with pytest.raises(DataError) as caught:
            CounterfactualDataset(data, shards, key=base.key)
        assert f"image 'train-00' differs from the source of its samples{' ' + said if said else ''}; use" in str(
            caught.value
        )
        with pytest.raises(DataError) as caught:
            CounterfactualDataset(data, shards)
        assert f"no image has the pixels of a source{' ' + said if said else ''}; a base" in str(caught.value)
        assert "\n" not in str(caught.value)
    some = Labelled(base, list(range(N)), lambda image, i: (v2.functional.vflip(image if i % 2 else grey(image)), i))
    with pytest.raises(DataError, match="no image has the pixels of a source; a base"):  # grey is not why
        CounterfactualDataset(some, shards)
