"""An item around another picture is the item that the data set would have made of it: for every kind of data set."""

from __future__ import annotations

import copy
import pickle
import random
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers import base_cases
from helpers.base_cases import CASES, TO_FLOAT, N, Plain, exactly, image_folder, write_pngs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, StackDataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.errors import CfaugError, DataError, UsageError
from cfaug.learn.image_types import like
from cfaug.learn.reordered import mark_of
from cfaug.learn.swap import open_base
from cfaug.learn.swap.images import as_picture, with_value
from cfaug.learn.swap.splits import splits_of

IMAGES = np.random.default_rng(0).integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
IMAGES.setflags(write=False)
LAZY_OR_KEPT = {  # swapped() decodes nothing; of the others the type or size of the image must be seen
    "ImageFolder", "ImageFolder, transforms", "ImageFolder, lazy loader", "ImageFolder, wrapped for v2", "MNIST",
    "MNIST, bare", "CIFAR10", "ArrayDataset", "ArrayDataset, grey", "FolderDataset", "Subset", "Subset of Subset",
    "ConcatDataset", "StackDataset", "HF", "HF, grey", "HF, mode L", "HF, torch", "HF, numpy", "HF, columns", "HF, transform", "HF, shuffled",
    "HF in a torch Dataset", "WILDS", "WILDS, lazy", "WILDS subset", "WILDS subset, joint", "Subset of a WILDS subset",
    "lazily opened", "lazily opened, transform", "TensorDataset", "cached",
}  # fmt: skip


GREY = {"HF, grey", "MNIST", "MNIST, bare", "ArrayDataset, grey"}


def place_of(name: str, dataset: Any, i: int) -> int:
    """Which of the N images item i shows."""
    if isinstance(dataset, ConcatDataset):
        return i if i < N else int(dataset.datasets[1].indices[i - N])
    if name == "HF, shuffled":
        return int(base_cases.columns(IMAGES).add_column("at", list(range(N))).shuffle(seed=1)[i]["at"])
    while hasattr(dataset, "indices"):
        i, dataset = int(dataset.indices[i]), dataset.dataset
    return i


@pytest.mark.parametrize("name", CASES)
def test_swapped_is_what_the_data_set_of_the_other_images_yields(name: str, tmp_path: Path) -> None:
    dataset, other = CASES[name](IMAGES, tmp_path / "a"), CASES[name](OTHERS, tmp_path / "b")
    base = open_base(dataset)
    for i in range(len(dataset)):
        shown = OTHERS[place_of(name, dataset, i)]
        picture = Image.fromarray(shown[..., 0] if name in GREY else shown)
        if name == "HF, grey" and i % 2:
            picture = picture.convert("RGB")  # whose mode is not the image's
        assert exactly(base.swapped(i, picture), other[i]), i
        assert exactly(base.item(i), dataset[i])  # nothing stays behind, in caches neither
    assert not exactly(base.swapped(0, Image.fromarray(OTHERS[0])), dataset[0])


@pytest.mark.parametrize("name", CASES)
def test_swapped_with_its_own_picture_is_the_item(name: str, tmp_path: Path) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    for base in (open_base(dataset), pickle.loads(pickle.dumps(open_base(dataset)))):
        assert len(base) == len(dataset)
        for i in range(len(dataset)):
            assert exactly(base.swapped(i, as_picture(base.picture(i))), dataset[i])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many image files were decoded; headers do not count."""
    count, load = [0], ImageFile.ImageFile.load

    def counting(image: ImageFile.ImageFile) -> Any:
        count[0] += bool(image.tile)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    for plugin in Image.registered_extensions() and Image.OPEN:
        own = Image.OPEN[plugin][0]
        if isinstance(own, type) and "load" in vars(own):
            monkeypatch.setattr(own, "load", _counting(own.load, count))
    return count


def _counting(load: Callable[..., Any], count: list[int]) -> Callable[..., Any]:
    def counting(image: Any, *args: Any) -> Any:
        count[0] += bool(image.tile)
        return load(image, *args)

    return counting


@pytest.mark.parametrize("name", sorted(LAZY_OR_KEPT))
def test_these_bases_decode_nothing_for_a_swap(name: str, tmp_path: Path, decoded: list[int]) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    base = open_base(dataset)
    base.label(0)  # may look once whether stored labels are those of the items
    before = decoded[0]
    for i in range(len(dataset)):
        base.swapped(i, Image.fromarray(OTHERS[0]))
        base.keys()
    assert decoded[0] == before


def test_decodes_are_counted(tmp_path: Path, decoded: list[int]) -> None:
    base = open_base(image_folder(IMAGES, tmp_path))
    base.item(3)
    assert decoded[0] == 1


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_the_items(name: str, tmp_path: Path) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    base = open_base(dataset)
    for i in range(len(dataset)):
        item, label = dataset[i], base.label(i)
        if isinstance(item, dict):
            want = next(item[key] for key in ("label", "labels", "y") if key in item)
        elif name in ("bare", "joint transforms"):
            want = None
        else:
            want = item[2] if name == "image second" else item[1]
            want = item[0][1] if name in ("nested", "StackDataset") else want  # what follows the image
            want = item[1][1] if name == "Subset of a StackDataset" else want
        assert exactly(label, want) or label == want


def test_labels_need_no_decoding(tmp_path: Path, decoded: list[int]) -> None:
    for number, name in enumerate(["ImageFolder, transforms", "Subset", "FolderDataset", "HF", "WILDS subset"]):
        dataset = CASES[name](IMAGES, tmp_path / str(number))
        base = open_base(dataset)
        base.label(0)
        before = decoded[0]
        assert len({base.label(i) for i in range(len(dataset))}) > 1 or name == "WILDS subset"
        assert decoded[0] == before


def test_stored_labels_that_are_not_the_items_are_not_believed(tmp_path: Path) -> None:
    dataset = Plain(IMAGES, base_cases.pair)
    dataset.targets = [7] * N
    assert [open_base(dataset).label(i) for i in range(4)] == [0, 1, 0, 1]
    assert open_base(Plain(IMAGES, base_cases.bare)).label(0) is None


def test_labels_that_are_changed_on_the_way_are_the_items(tmp_path: Path) -> None:
    """A stored label that happens to be the first item's says nothing of the others: who changes labels is asked."""

    def both(image: Any, label: Any) -> Any:
        return TO_FLOAT(image), 5 * label

    class Classified(base_cases.Joint):
        targets = tuple(i % 2 for i in range(N))

        def __getitem__(self, i: int) -> Any:
            return self.transforms(Image.fromarray(self.images[i]), self.targets[i])

    wilds = base_cases.WildsSubset(base_cases.Wilds(IMAGES, tmp_path), list(range(N)), both, do_transform_y=True)
    one = base_cases.cifar(IMAGES, target_transform=lambda label: 5 * label)
    for dataset in (wilds, Classified(IMAGES, both), one):
        base = open_base(dataset)
        assert [int(base.label(i)) for i in range(4)] == [int(dataset[i][1]) for i in range(4)] == [0, 5, 0, 5]
    mask = Plain(IMAGES, lambda image, i: {"image": image, "label": np.asarray(image)[..., 0]})
    assert open_base(mask, image_key="image").label(0) is None


def test_keys_are_those_that_the_data_set_knows(tmp_path: Path, decoded: list[int]) -> None:
    folder = image_folder(IMAGES, tmp_path / "a")
    names = [f"class_{2 * i // N}/{i}.png" for i in range(N)]
    assert open_base(folder).keys() == names
    assert open_base(Subset(folder, [5, 2])).keys() == [names[5], names[2]]
    assert open_base(ConcatDataset([folder, Subset(folder, [1])])).keys() == [*names, names[1]]
    second = image_folder(IMAGES, tmp_path / "b")  # the same names mean other images there
    assert open_base(ConcatDataset([folder, second])).keys() is None
    array = base_cases.array_dataset(IMAGES)
    assert open_base(array).keys() == [f"k{i}" for i in range(N)]
    assert open_base(base_cases.folder_dataset(IMAGES, tmp_path / "c")).keys() == names
    assert open_base(ConcatDataset([folder, array])).keys() == [*names, *(f"k{i}" for i in range(N))]
    assert open_base(base_cases.Cached(folder, TO_FLOAT)).keys() == names
    assert open_base(Reversed(folder)).keys() is None  # nobody knows which item it takes
    assert open_base(Plain(IMAGES, base_cases.pair)).keys() is None
    assert open_base(Subset(base_cases.Cached(array, TO_FLOAT), [3])).keys() == ["k3"]


def test_places_that_count_from_the_end(tmp_path: Path) -> None:
    parts = [image_folder(IMAGES, tmp_path / "a"), image_folder(OTHERS, tmp_path / "b")]
    dataset = Subset(ConcatDataset(parts), [-1, -N - 1])
    base, mark = open_base(dataset), mark_of(dataset, 0)
    for i, picture in enumerate([IMAGES[0], OTHERS[0]]):
        assert exactly(base.picture(i), dataset[i][0])
        assert exactly(base.swapped(i, Image.fromarray(picture)), (Image.fromarray(picture), dataset[i][1]))
        assert base.label(i) == dataset[i][1] == 1
    parts[1].samples.reverse()
    assert mark_of(dataset, 0) not in (mark, None)


class Reversed(Dataset):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        return self.inner[len(self) - 1 - i]


def test_a_wrapper_that_takes_other_places_swaps_the_right_item(tmp_path: Path) -> None:
    base = open_base(Reversed(image_folder(IMAGES, tmp_path)))
    assert exactly(base.picture(0), Image.fromarray(IMAGES[N - 1]))
    image, label = base.swapped(0, Image.fromarray(OTHERS[0]))
    assert label == 1
    assert exactly(image, Image.fromarray(OTHERS[0]))


def test_splits_are_found_below_whatever_holds_the_data_set(tmp_path: Path) -> None:
    array = base_cases.array_dataset(IMAGES)
    val, half = copy.copy(array), base_cases.columns(IMAGES)
    val.split = "val"
    half._split = datasets.NamedSplit("test[:50%]")
    assert splits_of(array) == {"train"}
    assert splits_of(Subset(Subset(val, [0, 1]), [1])) == {"val"}
    assert splits_of(base_cases.Cached(Subset(val, [0, 1]), TO_FLOAT)) == {"val"}
    assert splits_of(ConcatDataset([array, Subset(val, [0])])) == {"train", "val"}
    assert splits_of(base_cases.Rows(half, TO_FLOAT)) == {"test[:50%]"}
    half._split = datasets.NamedSplit("train+test")
    assert splits_of(half) == {"train", "test"}
    assert splits_of(Subset(base_cases.mnist(IMAGES, tmp_path / "mnist", train=False), [0])) == {"test"}
    assert splits_of(base_cases.cifar(IMAGES)) == {"train"}
    assert splits_of(image_folder(IMAGES, tmp_path / "folder")) == set()
    mine = Plain(IMAGES, base_cases.pair)
    mine.inner = mine  # that holds itself
    assert splits_of(mine) == set()


@pytest.mark.parametrize("name", CASES)
def test_the_users_data_set_is_not_touched(name: str, tmp_path: Path) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    before = {key: (id(value), _size(value)) for key, value in vars(dataset).items()}
    base = open_base(dataset)
    for i in range(len(dataset)):
        base.swapped(i, Image.fromarray(OTHERS[i % N]))
    base.keys()
    after = {key: (id(value), _size(value)) for key, value in vars(dataset).items()}
    assert {key: after[key] for key in before} == before


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (list, dict, set)) else -1


def test_no_generator_is_advanced_by_opening(tmp_path: Path) -> None:
    def noisy(image: Any) -> torch.Tensor:
        return v2.functional.pil_to_tensor(image) + torch.rand(1) + np.random.rand() + random.random()

    for dataset in (Plain(IMAGES, base_cases.pair, noisy), Hidden(noisy)):
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        open_base(dataset, transform=TO_FLOAT if isinstance(dataset, Hidden) else None)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert random.getstate() == states[2]


def test_what_is_set_on_the_data_set_later_is_seen(tmp_path: Path) -> None:
    folder, plain = image_folder(IMAGES, tmp_path, transform=TO_FLOAT), Plain(IMAGES, base_cases.pair, TO_FLOAT)
    rows = base_cases.columns(IMAGES)
    bases = [open_base(folder), open_base(plain), open_base(Subset(folder, range(N))), open_base(rows)]
    folder.transform = plain.transform = v2.PILToTensor()
    rows.set_format("torch")
    for base in bases:
        item = base.swapped(1, Image.fromarray(OTHERS[1]))
        image = item["image"] if isinstance(item, dict) else item[0]
        assert exactly(image, v2.PILToTensor()(Image.fromarray(OTHERS[1])))


class Hidden(Dataset):
    """Floats by a transform that nobody sees."""

    def __init__(self, hidden: Any = TO_FLOAT) -> None:
        self._hidden, self.transform = hidden, None

    def __len__(self) -> int:
        return N

    def key(self, i: int) -> str:
        return f"h{i}"

    def __getitem__(self, i: int) -> Any:
        return self._hidden(Image.fromarray(IMAGES[i])), i % 2, f"note {i}"


def test_hidden_floats_need_transform(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pass transform= .* and key=") as caught:
        open_base(Hidden())
    assert "\n" not in str(caught.value)
    base = open_base(Hidden(), transform=TO_FLOAT)
    for again in (base, pickle.loads(pickle.dumps(base))):
        assert exactly(again.swapped(3, Image.fromarray(IMAGES[3])), Hidden()[3])
        assert again.label(3) == 1
        assert again.keys() == [f"h{i}" for i in range(N)]
    with pytest.raises(UsageError, match="pass key="):
        base.picture(0)
    assert open_base(Subset(Hidden(), [4]), transform=TO_FLOAT).keys() == ["h4"]


@pytest.mark.parametrize("own", [None, TO_FLOAT, v2.Compose([v2.RandomHorizontalFlip(), v2.PILToTensor()])])
def test_a_transform_that_is_not_the_bases_is_refused(own: Any, tmp_path: Path) -> None:
    folder = image_folder(IMAGES, tmp_path, transform=own)
    darker = v2.Compose([TO_FLOAT, v2.Normalize([0.5] * 3, [0.1] * 3)])
    for other in (TO_FLOAT, v2.PILToTensor(), v2.Grayscale(), darker, copy.copy):
        fits = (own is TO_FLOAT and other is TO_FLOAT) or (own is None and other is copy.copy)
        if fits or (own not in (None, TO_FLOAT) and isinstance(other, v2.PILToTensor)):  # flips: nothing to compare
            assert exactly(open_base(folder, other).picture(0), Image.fromarray(IMAGES[0]))
            continue
        with pytest.raises(UsageError, match="transform: expected what makes the images of this base") as caught:
            open_base(folder, other)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="transform: expected a function from a PIL image"):
        open_base(folder, 3)


class Two(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return {"before": Image.fromarray(IMAGES[i]), "after": Image.fromarray(OTHERS[i]), "label": i % 2}


class Endless(Two):
    """As torch's own classes once said that they have no length."""

    def __len__(self) -> int:
        raise TypeError("no\nlen")


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(())


class Text(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        return "a word", 1


class Deep(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        return Image.new("I;16", (5, 6)), 1


def two_columns() -> datasets.Dataset:
    return base_cases.columns(IMAGES).add_column("other", [None] * N).cast_column("other", datasets.Image())


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (Two(), "images at 'before', 'after'; say which by image_key="),
        (Stream(), "expected a dataset with len"),
        (iter([1]), "iterables have no index"),
        (Text(), "expected items with an image"),
        (two_columns(), "one image column, came image, other"),
        (datasets.DatasetDict(train=base_cases.columns(IMAGES)), "came DatasetDict of train; choose one"),
        (Endless(), r"came Endless, whose len\(\) fails \(TypeError: no len\); give it a length"),
        (Subset(Endless(), [0]), "came Endless, whose len"),
        (ImageFolder, r"came the class ImageFolder itself; make one: ImageFolder\(\.\.\.\)"),
        *((base_cases.columns(IMAGES).with_format(kind), f"of format '{kind}', whose items are tables; take .with_format")
          for kind in ("pandas", "arrow")),
        (StackDataset([1], [2]), "expected items with an image"),
        (StackDataset([torch.rand(3, 6, 5)], [2]), "pass transform= "),
        (StackDataset(Plain(IMAGES, base_cases.pair), Plain(OTHERS, base_cases.bare)), "came 0, 1; say which by image_key="),
    ],
)  # fmt: skip
def test_bad_bases_are_told_in_one_line(dataset: Any, said: str) -> None:
    with pytest.raises(CfaugError, match=said) as caught:
        open_base(dataset)
    assert "\n" not in str(caught.value)


def test_image_key_chooses_among_images() -> None:
    for key, rest in (("before", "after"), ("after", "before")):
        item = open_base(Two(), image_key=key).swapped(2, Image.new("L", (5, 6), 9))
        assert exactly(item[key], Image.new("RGB", (5, 6), (9, 9, 9)))
        assert exactly(item[rest], Two()[2][rest])
    rows = open_base(two_columns(), image_key="image")
    assert rows.swapped(0, Image.fromarray(OTHERS[0]))["other"] is None
    copied = pickle.loads(pickle.dumps(open_base(Two(), image_key="after")))
    assert exactly(copied.picture(2), Two()[2]["after"])
    with pytest.raises(UsageError, match="image_key: expected where"):
        open_base(Two(), image_key="middle")


def test_image_key_chooses_a_part_of_a_stack(tmp_path: Path) -> None:
    pairs, two, rows = Plain(IMAGES, base_cases.pair), Two(), two_columns()
    for key, place in ((0, (0, 0)), (-3, (0, 0)), ((1, "after"), (1, "after")), ((2, "image"), (2, "image"))):
        base = open_base(StackDataset(pairs, two, rows), image_key=key)
        again = pickle.loads(pickle.dumps(base))
        for one in (base, again):
            item, was = one.swapped(2, Image.fromarray(OTHERS[3])), base.item(2)
            assert exactly(with_value(was, place, Image.fromarray(OTHERS[3])), item)
    for wrong in (3, "image"):
        with pytest.raises(UsageError, match="image_key: expected a part of this StackDataset") as caught:
            open_base(StackDataset(pairs, two, rows), image_key=wrong)
        assert "\n" not in str(caught.value)
    names = open_base(image_folder(IMAGES, tmp_path)).keys()
    assert open_base(StackDataset(a=list(range(N)), b=ImageFolder(tmp_path))).keys() == names


class Summed(StackDataset[Any]):
    """Makes one item of the two."""

    def __getitem__(self, i: int) -> Any:
        (image, one), other = super().__getitem__(i)
        return {"image": image, "label": one + other}


def test_a_stack_of_what_cannot_be_swapped_says_why() -> None:
    with pytest.raises(UsageError, match="KeepingItems kept item 0 as its transform left it"):
        open_base(StackDataset(["a"] * N, KeepingItems({}, whiten)))
    assert len(open_base(StackDataset([], []))) == 0


def test_a_stack_that_makes_other_items_is_opened_by_these() -> None:
    base = open_base(Summed(Plain(IMAGES, base_cases.pair), [10] * N))
    assert base.label(1) == 11
    assert exactly(base.swapped(1, Image.fromarray(OTHERS[1])), {"image": Image.fromarray(OTHERS[1]), "label": 11})


def test_deep_images_and_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 bits a channel"):
        open_base(Deep()).swapped(0, Image.new("L", (5, 6)))
    large = Image.new("RGB", (9, 9))
    for number, name in enumerate(
        ["uint8 tensor", "tv_tensor", "array", "HF, torch", "DatasetFolder of tensors", "pair, transform"]
    ):
        with pytest.raises(DataError, match="expected the size of its source, 5 x 6 pixels, came 9 x 9 pixels"):
            open_base(CASES[name](IMAGES, tmp_path / str(number))).swapped(0, large)


def test_pictures_take_the_mode_of_the_image(tmp_path: Path) -> None:
    grey = Image.fromarray(OTHERS[0]).convert("L")
    assert open_base(image_folder(IMAGES, tmp_path)).swapped(0, grey)[0].mode == "RGB"
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA", "CMYK"):
        assert like(grey, Image.new(mode, (5, 6)), str).mode == mode


def test_a_mode_that_was_not_looked_at_and_a_palette(tmp_path: Path) -> None:
    """Of a lazily opened WILDS image the header says the mode; what is not grey is RGB in a FolderDataset."""
    wilds = base_cases.Wilds(IMAGES, tmp_path / "wilds", lazy=True)
    Image.fromarray(IMAGES[2]).convert("L").save(wilds.paths[2])
    base = open_base(wilds)
    assert [base.swapped(i, Image.fromarray(OTHERS[i]))[0].mode for i in range(4)] == ["RGB", "RGB", "L", "RGB"]
    folder = base_cases.folder_dataset(IMAGES, tmp_path / "folder")
    Image.fromarray(IMAGES[0]).quantize(8).save(tmp_path / "folder" / folder.key(0))
    for i, mode in enumerate(["RGB", "L"]):
        assert open_base(folder).swapped(i, Image.fromarray(OTHERS[i]))[0].mode == folder[i][0].mode == mode


class Shifted(base_cases.Wilds):
    def __getitem__(self, i: int) -> Any:
        x, y, metadata = super().__getitem__(i)
        return x, y + 7, metadata


def test_a_triple_that_is_not_what_is_stored(tmp_path: Path) -> None:
    base = open_base(Shifted(IMAGES, tmp_path))
    assert [int(base.swapped(i, Image.fromarray(OTHERS[i]))[1]) for i in range(3)] == [7, 8, 7]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_of_turned_files_are_turned(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    paths = [str(tmp_path / f"{i}.jpg") for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(IMAGES[i]).save(path, exif=exif)
    rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()).with_format("numpy")
    base = open_base(rows)
    for i in range(2):
        assert exactly(base.swapped(i, as_picture(base.picture(i))), rows[i])


def open_rgb(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


ROTATED: dict[str, Callable[[Path, Any], Any]] = {
    "ImageFolder": lambda d, f: ImageFolder(d, f),
    "ImageFolder, lazy": lambda d, f: ImageFolder(d, f, loader=base_cases.open_lazily),
    "ImageFolder, own loader": lambda d, f: ImageFolder(d, f, loader=open_rgb),
    "Subset": lambda d, f: Subset(ImageFolder(d, f), [2, 1]),
    "any": lambda d, f: base_cases.Opened(sorted(d.rglob("*.png")), f),
    "WILDS": lambda d, f: base_cases.WildsSubset(_wilds(d), np.arange(N), f),
    "HF": lambda d, f: base_cases.Rows(_from_files(d), f),
    "HF, RGB": lambda d, f: base_cases.Rows(_from_files(d).cast_column("image", datasets.Image(mode="RGB")), f),
    "told": lambda d, f: base_cases.Told(sorted(d.rglob("*.png")), f),
}


def _wilds(folder: Path) -> Any:
    made = base_cases.Wilds(IMAGES, folder / "other")
    made.paths = sorted(path for path in folder.rglob("*.png") if "other" not in path.parts)
    return made


def _from_files(folder: Path) -> Any:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("kind", ROTATED)
def test_rotation_and_alpha_are_the_images_own(kind: str, mode: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for i, path in enumerate(write_pngs(IMAGES, tmp_path)):
        image = Image.fromarray(IMAGES[i]).convert(mode)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(OTHERS[i][..., 0]))
        image.save(path, exif=exif if i != 1 else None)
    dataset = ROTATED[kind](tmp_path, turned)
    base = open_base(dataset, turned if kind == "told" else None)
    for i in range(len(dataset)):
        plain = Image.fromarray(np.array(as_picture(base.picture(i)).convert("RGB")))  # as a sample's picture comes
        assert exactly(base.swapped(i, plain), dataset[i]), i


class Counter:
    count = 0


class Mixed(Dataset):
    """Grey and coloured by turns; a file handle it opens for itself; two items asked of another data set."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.handle, self.opened = paths, None, Counter()
        self.transform = v2.Compose([v2.ToImage()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        if self.handle is None:
            self.handle = object()
            self.opened.count += 1
        image = Image.open(self.paths[i]).convert("L" if i % 2 else "RGB")
        return self.transform(image), i % 2


def test_modes_that_differ_and_handles_opened_once(tmp_path: Path) -> None:
    dataset = Mixed(write_pngs(IMAGES, tmp_path))
    base = open_base(dataset)
    for i in range(N):
        assert base.swapped(i, Image.fromarray(OTHERS[i]))[0].shape[0] == (1 if i % 2 else 3)
    assert dataset.handle is None
    assert dataset.opened.count == 1


class Mix(Dataset):
    """Averages two items of another data set."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        (one, label), (other, _) = self.inner[i], self.inner[(i + 1) % len(self)]
        return Image.blend(one, other, 0.5), label


def test_a_wrapper_that_mixes_two_swaps_the_first(tmp_path: Path) -> None:
    base = open_base(Mix(image_folder(IMAGES, tmp_path)))
    want = Image.blend(Image.fromarray(OTHERS[2]), Image.fromarray(IMAGES[3]), 0.5)
    assert exactly(base.swapped(2, Image.fromarray(OTHERS[2]))[0], want)


class Mapped(UserDict):
    """A mapping that is no dict, as files and the caches of libraries are: it cannot be copied."""

    def __copy__(self) -> Any:
        raise TypeError("cannot be copied")


class Keeping(Dataset):
    """Keeps the last three images that it has opened, in one of the ways people do."""

    def __init__(self, kept: Any, transform: Any) -> None:
        self.kept, self.transform = kept, transform

    def __len__(self) -> int:
        return N

    def _remembered(self, i: int, make: Callable[[], Any]) -> Any:
        kept = self.kept["below"] if isinstance(self.kept, dict) and "below" in self.kept else self.kept
        if isinstance(kept, list):
            if kept[i] is None:
                if sum(one is not None for one in kept) == 3:
                    kept[next(j for j, one in enumerate(kept) if one is not None)] = None
                kept[i] = make()
        elif i not in kept:
            if len(kept) == 3:
                kept.pop(next(iter(kept)))
            kept[i] = make()
        return kept[i]

    def __getitem__(self, i: int) -> Any:
        image, label = self._remembered(i, lambda: (Image.fromarray(IMAGES[i]), i % 2))
        return (image if self.transform is None else self.transform(image)), label


class KeepingItems(Keeping):
    """Keeps them transformed."""

    def __getitem__(self, i: int) -> Any:
        return self._remembered(i, lambda: (self.transform(Image.fromarray(IMAGES[i])), i % 2))


class KeepingInner(Keeping):
    """Keeps the items of another data set."""

    def __init__(self, kept: Any, transform: Any) -> None:
        super().__init__(kept, transform)
        self.inner = Plain(IMAGES, base_cases.pair)

    def __getitem__(self, i: int) -> Any:
        image, label = self._remembered(i, lambda: self.inner[i])
        return (image if self.transform is None else self.transform(image)), label


CACHES: dict[str, Callable[[], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "list": lambda: [None] * N,
    "no dict": Mapped,
    "deeper": lambda: {"below": {}},
}


def whiten(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


@pytest.mark.parametrize("looked", [(), (5,), (0, 5, 6)])
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("transform", [None, whiten])
@pytest.mark.parametrize("form", [Keeping, KeepingInner])
def test_caches_never_hold_counterfactuals(form: Any, transform: Any, kept: str, looked: tuple[int, ...]) -> None:
    def shown(images: np.ndarray, i: int) -> Any:
        image = Image.fromarray(images[i])
        return (image if transform is None else transform(image)), i % 2

    dataset = form(CACHES[kept](), transform)
    for i in looked:  # people look at an item or two first
        dataset[i]
    base = open_base(dataset)
    for i in (0, 1, 2, 5, 1, 2, 0, 1):
        for images in (OTHERS, OTHERS[::-1]):
            assert exactly(base.swapped(i, Image.fromarray(images[i])), shown(images, i))
            assert exactly(base.picture(i), Image.fromarray(IMAGES[i]))
        if i != 2:
            assert exactly(dataset[i], shown(IMAGES, i))
    assert exactly([dataset[i] for i in range(N)], [shown(IMAGES, i) for i in range(N)])


@pytest.mark.parametrize("looked", [(), (5,), (0, 5, 6)])
@pytest.mark.parametrize("kept", CACHES)
def test_who_keeps_finished_items_is_refused(kept: str, looked: tuple[int, ...]) -> None:
    dataset = KeepingItems(CACHES[kept](), whiten)
    want = [dataset[i] for i in looked]
    with pytest.raises(UsageError, match="kept item 0 as its transform left it"):
        open_base(dataset)
    assert exactly([dataset[i] for i in looked], want)
    assert exactly(dataset[0], (whiten(Image.fromarray(IMAGES[0])), 0))


@pytest.mark.parametrize("kept", ["dict", "list"])
@pytest.mark.parametrize("inner", [TO_FLOAT, whiten, v2.Resize((3, 3))])
def test_who_keeps_what_another_data_set_has_transformed_is_refused(kept: str, inner: Any) -> None:
    for transform in (None, copy.copy):
        dataset = KeepingInner(CACHES[kept](), transform)
        dataset.inner.transform = inner
        with pytest.raises(UsageError, match="kept item 0 as its transform left it"):
            open_base(dataset)
        told = open_base(dataset, transform=TO_FLOAT)
        assert exactly(told.swapped(1, Image.fromarray(OTHERS[1])), (TO_FLOAT(Image.fromarray(OTHERS[1])), 1))


class OnDisk(Plain):
    """Keeps finished tensors as files."""

    def __init__(self, folder: Path, transform: Any) -> None:
        super().__init__(IMAGES, base_cases.pair, transform)
        self.folder = folder

    def __getitem__(self, i: int) -> Any:
        path = self.folder / f"{i}.pt"
        if not path.exists():
            torch.save(self.transform(Image.fromarray(IMAGES[i])), path)
        return torch.load(path, weights_only=False), i % 2


class InPlace(Plain):
    """Keeps finished tensors in one that it has made beforehand."""

    def __init__(self, transform: Any) -> None:
        super().__init__(IMAGES, base_cases.pair, transform)
        self.kept, self.filled = torch.zeros(N, 3, 6, 5, dtype=torch.uint8), torch.zeros(N, dtype=torch.bool)

    def __getitem__(self, i: int) -> Any:
        if not self.filled[i]:
            self.kept[i], self.filled[i] = self.transform(Image.fromarray(IMAGES[i])), True
        return self.kept[i], i % 2


def test_who_keeps_finished_tensors_is_refused_and_has_no_counterfactual(tmp_path: Path) -> None:
    whole = v2.Compose([v2.PILToTensor(), v2.RandomInvert(1.0)])
    for dataset in (OnDisk(tmp_path, whole), InPlace(whole)):
        with pytest.raises(UsageError, match="kept item 0 as its transform left it"):
            open_base(dataset)
        for i in range(N):
            assert torch.equal(dataset[i][0], whole(Image.fromarray(IMAGES[i])))
    (tmp_path / "floats").mkdir()
    floats = OnDisk(tmp_path / "floats", TO_FLOAT)
    assert floats[0][0].dtype == torch.float32  # is known before the base is opened
    with pytest.raises(UsageError, match="kept item 0 as its transform left it"):
        open_base(floats)


class Minority(Plain):
    """Transforms one class only."""

    def __getitem__(self, i: int) -> Any:
        image = Image.fromarray(self.images[i])
        return (self.transform(image) if i % 2 else image), i % 2


def test_a_transform_may_pass_items_over() -> None:
    for places in (range(N), range(1, N)):  # the first item is one that is not transformed, or one that is
        base = open_base(Subset(Minority(IMAGES, base_cases.pair, whiten), places))
        for i, place in enumerate(places):
            picture = Image.fromarray(OTHERS[place])
            assert exactly(base.swapped(i, picture), (whiten(picture) if place % 2 else picture, place % 2))


class KeepsSome(Plain):
    """Keeps finished items of one class, in what a copy of the data set shares with it."""

    def __init__(self, transform: Any) -> None:
        super().__init__(IMAGES, base_cases.pair, transform)
        self.kept: Any = UserDict()

    def __getitem__(self, i: int) -> Any:
        if i % 2 and i not in self.kept:
            self.kept[i] = self.transform(Image.fromarray(self.images[i]))
        return self.kept[i] if i % 2 else self.transform(Image.fromarray(self.images[i])), i % 2


def test_an_item_found_finished_only_later_is_refused_then() -> None:
    dataset = KeepsSome(whiten)
    base = open_base(dataset)
    dataset[1]
    assert exactly(base.swapped(2, Image.fromarray(OTHERS[2])), (whiten(Image.fromarray(OTHERS[2])), 0))
    with pytest.raises(UsageError, match="kept item 1 as its transform left it"):
        base.swapped(1, Image.fromarray(OTHERS[1]))


class Drawing:
    """A transform with a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.rotate(self.generator.integers(360))


def test_opening_draws_nothing_from_a_transforms_own_generator() -> None:
    transform, fresh = Drawing(), Drawing()
    open_base(Plain(IMAGES, base_cases.pair, transform))
    assert transform.generator.random() == fresh.generator.random()


def test_threads_swap_their_own_pictures() -> None:
    for form in (Keeping, KeepingInner):
        kept = {i: (Image.fromarray(IMAGES[i]), i % 2) for i in range(0, N, 2)}
        dataset = form({}, whiten)
        dataset._remembered = lambda i, make, kept=kept: (
            kept.get(i) or make()
        )  # no eviction: popping is not safe in threads
        base = open_base(dataset)

        def work(k: int, base: Any = base) -> bool:
            image = Image.fromarray(np.full((6, 5, 3), k % 256, dtype=np.uint8))
            return exactly(base.swapped(k % N, image), (whiten(image), k % N % 2))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(400)))


def test_a_told_base_decodes_once_a_swap(tmp_path: Path, decoded: list[int]) -> None:
    base = open_base(image_folder(IMAGES, tmp_path, transform=TO_FLOAT), transform=TO_FLOAT)
    base.swapped(0, Image.fromarray(OTHERS[0]))
    before = decoded[0]
    for i in range(N):
        base.swapped(i, Image.fromarray(OTHERS[i]).convert("L"))
    assert decoded[0] == before + N


def test_a_told_base_tells_grey_from_colour(tmp_path: Path) -> None:
    for first in (0, 1):  # grey and coloured by turns, or all grey
        told = open_base(
            Subset(Mixed(write_pngs(IMAGES, tmp_path / str(first))), range(first, N, 1 + first)), v2.ToImage()
        )
        for i in range(len(told)):
            grey = (first + i * (1 + first)) % 2 == 1
            assert told.swapped(i, Image.fromarray(OTHERS[i]))[0].shape[0] == (1 if grey else 3)


class LabelOf(Plain):
    """Its own images, with the labels of another data set."""

    def __init__(self, inner: Any) -> None:
        super().__init__(IMAGES, base_cases.pair, TO_FLOAT)
        self.inner = inner

    def __getitem__(self, i: int) -> Any:
        label = self.inner[i][1]
        return self.transform(Image.fromarray(self.images[i])), label


class Forgetful(Plain):
    """Leaves its open file out of its pickles, so that it also lacks in copies."""

    def __init__(self) -> None:
        super().__init__(IMAGES, base_cases.pair, TO_FLOAT)
        self.file = self.images

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "file"}

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.file[i])), i % 2


def test_only_the_label_of_an_inner_data_set_and_files_that_are_not_copied(tmp_path: Path) -> None:
    for dataset in (LabelOf(image_folder(OTHERS, tmp_path)), Forgetful()):
        image, _ = open_base(dataset).swapped(1, Image.fromarray(OTHERS[1]))
        assert exactly(image, TO_FLOAT(Image.fromarray(OTHERS[1])))


def test_a_transform_given_two_images_is_refused() -> None:
    class Both(Plain):
        def __getitem__(self, i: int) -> Any:
            return self.transform(Image.fromarray(IMAGES[i])), self.transform(Image.fromarray(OTHERS[i]))

    with pytest.raises(UsageError, match="one image an item"):
        open_base(Both(IMAGES, base_cases.pair, TO_FLOAT)).swapped(0, Image.fromarray(OTHERS[0]))


def _zipped(tmp_path: Path, hf: bool) -> tuple[base_cases.Zipped, list[Any]]:
    every: list[Any] = [
        image_folder(IMAGES, tmp_path / "a", transform=TO_FLOAT),
        Plain(IMAGES, base_cases.pair, TO_FLOAT),
        base_cases.WildsSubset(base_cases.Wilds(IMAGES, tmp_path / "b"), np.arange(N), TO_FLOAT),
        base_cases.Cached(base_cases.array_dataset(IMAGES), TO_FLOAT),
    ]
    every += [base_cases.columns(IMAGES).with_transform(base_cases.float_batch)] if hf else []
    return base_cases.Zipped([open_base(each) for each in every], OTHERS), every


# who unpickles a Hugging Face data set imports the whole library: seconds
@pytest.mark.parametrize("hf", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_spawned_workers_swap_the_same(hf: bool, tmp_path: Path) -> None:
    zipped, every = _zipped(tmp_path, hf)
    loader = DataLoader(zipped, 4, num_workers=2 if hf else 1, multiprocessing_context="spawn")
    shown = torch.cat(list(loader))
    assert shown.shape[:2] == (N, len(every))
    for i in range(N):
        assert torch.equal(shown[i], zipped[i])


@settings(max_examples=60, deadline=None)
@given(
    pixels=nps.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))),
    form=st.sampled_from(["pil", "tensor", "tv", "array"]),
)
def test_like_keeps_every_pixel_in_every_form(pixels: np.ndarray, form: str) -> None:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    factual = {"pil": image, "tensor": chw, "tv": tv_tensors.Image(chw), "array": pixels}[form]
    assert exactly(like(as_picture(factual), factual, str), factual)


@settings(max_examples=60, deadline=None)
@given(
    item=st.recursive(
        st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=8,
    ),
    data=st.data(),
)  # fmt: skip
def test_with_value_changes_one_place_and_no_other(item: Any, data: st.DataObject) -> None:
    before, path, at = copy.deepcopy(item), (), item
    while isinstance(at, (list, tuple, dict)) and len(at) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        path, at = (*path, key), at[key]
    mark = object()
    changed = with_value(item, path, mark)
    assert exactly(item, before)
    assert exactly(with_value(changed, path, at), before)
    for key in path:
        changed = changed[key]
    assert changed is mark


def test_datasets_is_imported_only_for_its_users() -> None:
    import ast

    import cfaug.learn.swap as bases

    importing = set()
    for path in Path(bases.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what runs when the module is loaded
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                importing |= {path.stem for name in names if name.split(".")[0] == "datasets"}
                assert not any(name.endswith(".huggingface") for name in names)
    assert importing == {"huggingface"}
