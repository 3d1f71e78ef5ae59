"""An item around a different picture is the item that the data set would have made of it: for every kind of data set."""

from __future__ import annotations

import copy
import pickle
import random
from collections import OrderedDict, UserDict
from collections.abc import Callable
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
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.errors import DataError, UsageError
from cfaug.learn.image_types import as_picture, like, with_value
from cfaug.learn.swap import open_base

IMAGES = np.random.default_rng(0).integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
IMAGES.setflags(write=False)
NOT_DECODED = {  # swapped() decodes nothing; for the others the type or size of the image must be seen
    "ImageFolder", "ImageFolder, transforms", "ImageFolder, lazy loader", "ImageFolder, wrapped for v2", "Subset", "ConcatDataset",
    "HF", "HF, grey", "HF, mode L", "HF, torch", "HF, numpy", "HF, columns", "HF, transform", "HF, shuffled", "HF in a torch Dataset",
    "WILDS, lazy", "lazily opened", "lazily opened, transform",
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
def test_a_swap_is_the_item_of_the_other_image(name: str, tmp_path: Path) -> None:
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
def test_a_swap_with_its_own_picture_is_the_item(name: str, tmp_path: Path) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    before = {key: (id(value), _size(value)) for key, value in vars(dataset).items()}
    opened = open_base(dataset)
    for i in range(len(dataset)):
        opened.swapped(i, Image.fromarray(OTHERS[i % N]))
    after = {key: (id(value), _size(value)) for key, value in vars(dataset).items()}
    assert {key: after[key] for key in before} == before  # the user's data set is not touched
    for base in (opened, pickle.loads(pickle.dumps(opened))):
        assert len(base) == len(dataset)
        for i in range(len(dataset)):
            assert exactly(base.swapped(i, as_picture(base.picture(i))), dataset[i])


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (list, dict, set)) else -1


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


@pytest.mark.parametrize("name", sorted(NOT_DECODED))
def test_a_swap_decodes_no_file(name: str, tmp_path: Path, decoded: list[int]) -> None:
    dataset = CASES[name](IMAGES, tmp_path)
    base = open_base(dataset)
    before = decoded[0]
    for i in range(len(dataset)):
        base.swapped(i, Image.fromarray(OTHERS[0]))
    assert decoded[0] == before


def test_decoded_files_are_counted(tmp_path: Path, decoded: list[int]) -> None:
    base = open_base(image_folder(IMAGES, tmp_path))
    before = decoded[0]
    base.item(3)
    assert decoded[0] == before + 1


class Reversed(Dataset):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        return self.inner[len(self) - 1 - i]


def test_a_wrapper_may_take_other_places(tmp_path: Path) -> None:
    base = open_base(Reversed(image_folder(IMAGES, tmp_path)))
    assert exactly(base.picture(0), Image.fromarray(IMAGES[N - 1]))
    image, label = base.swapped(0, Image.fromarray(OTHERS[0]))
    assert label == 1
    assert exactly(image, Image.fromarray(OTHERS[0]))


def test_no_generator_is_advanced_by_opening(tmp_path: Path) -> None:
    def noisy(image: Any) -> torch.Tensor:
        return v2.functional.pil_to_tensor(image) + torch.rand(1) + np.random.rand() + random.random()

    for dataset in (Plain(IMAGES, base_cases.pair, noisy), Hidden(noisy)):
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        open_base(dataset, transform=TO_FLOAT if isinstance(dataset, Hidden) else None)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert random.getstate() == states[2]


def test_attributes_set_later_are_seen(tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="pass key="):
        base.picture(0)
    for wrong, said in (
        (v2.PILToTensor(), "expected one that makes the images of this base"),
        (3, "expected a function from a PIL"),
    ):
        with pytest.raises(UsageError, match=f"transform: {said}"):
            open_base(image_folder(IMAGES, tmp_path, transform=TO_FLOAT), wrong)


class Two(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return {"before": Image.fromarray(IMAGES[i]), "after": Image.fromarray(OTHERS[i]), "label": i % 2}


def two_columns() -> datasets.Dataset:
    return base_cases.columns(IMAGES).add_column("other", [None] * N).cast_column("other", datasets.Image())


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


def test_deep_images_and_other_sizes_are_refused(tmp_path: Path) -> None:
    deep = [(Image.new("I;16", (5, 6)), 1)]
    with pytest.raises(UsageError, match="8 bits per channel"):
        open_base(deep).swapped(0, Image.new("L", (5, 6)))
    large = Image.new("RGB", (9, 9))
    for number, name in enumerate(
        ["uint8 tensor", "tv_tensor", "array", "DatasetFolder of tensors", "pair, transform"]
    ):
        with pytest.raises(DataError, match="expected the size of its source, 5 x 6 pixels, got 9 x 9 pixels"):
            open_base(CASES[name](IMAGES, tmp_path / str(number))).swapped(0, large)


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
    "OrderedDict": OrderedDict,
    "list": lambda: [None] * N,
    "no dict": Mapped,
    "deeper": lambda: {"below": {}},
}


def whiten(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


@pytest.mark.parametrize("looked", [(), (0, 5, 6)])
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


@pytest.mark.parametrize("looked", [(), (0, 5, 6)])
@pytest.mark.parametrize("kept", CACHES)
def test_kept_finished_items_are_refused(kept: str, looked: tuple[int, ...]) -> None:
    dataset = KeepingItems(CACHES[kept](), whiten)
    want = [dataset[i] for i in looked]
    with pytest.raises(UsageError, match="kept item 0 as its transform left it"):
        open_base(dataset)
    assert exactly([dataset[i] for i in looked], want)
    assert exactly(dataset[0], (whiten(Image.fromarray(IMAGES[0])), 0))


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


class Drawing:
    """A transform with a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.rotate(self.generator.integers(360))


def test_a_transforms_own_generator_is_not_advanced() -> None:
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
            assert all(pool.map(work, range(200)))


class LabelOf(Plain):
    """Its own images, with the labels of another data set."""

    def __init__(self, inner: Any) -> None:
        super().__init__(IMAGES, base_cases.pair, TO_FLOAT)
        self.inner = inner

    def __getitem__(self, i: int) -> Any:
        label = self.inner[i][1]
        return self.transform(Image.fromarray(self.images[i])), label


def test_an_inner_data_set_may_give_labels_alone(tmp_path: Path) -> None:
    image, _ = open_base(LabelOf(image_folder(OTHERS, tmp_path))).swapped(1, Image.fromarray(OTHERS[1]))
    assert exactly(image, TO_FLOAT(Image.fromarray(OTHERS[1])))


def test_a_transform_given_two_images_is_refused() -> None:
    class Both(Plain):
        def __getitem__(self, i: int) -> Any:
            return self.transform(Image.fromarray(IMAGES[i])), self.transform(Image.fromarray(OTHERS[i]))

    with pytest.raises(UsageError, match="one image per item"):
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


@pytest.mark.slow
@pytest.mark.parametrize("hf", [False, True])
def test_spawned_workers_swap_the_same(hf: bool, tmp_path: Path) -> None:
    zipped, every = _zipped(tmp_path, hf)
    loader = DataLoader(zipped, 4, num_workers=2 if hf else 1, multiprocessing_context="spawn")
    shown = torch.cat(list(loader))
    assert shown.shape[:2] == (N, len(every))
    for i in range(N):
        assert torch.equal(shown[i], zipped[i])


@settings(max_examples=40, deadline=None)
@given(
    pixels=nps.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))),
    form=st.sampled_from(["pil", "tensor", "tv", "array"]),
)
def test_like_keeps_every_pixel_in_every_form(pixels: np.ndarray, form: str) -> None:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    factual = {"pil": image, "tensor": chw, "tv": tv_tensors.Image(chw), "array": pixels}[form]
    assert exactly(like(as_picture(factual), factual, str), factual)


@settings(max_examples=40, deadline=None)
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


def open_rgb(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _from_files(folder: Path) -> Any:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


ROTATED: dict[str, Callable[[Path, Any], Any]] = {
    "ImageFolder": lambda d, f: ImageFolder(d, f),
    "ImageFolder, lazy": lambda d, f: ImageFolder(d, f, loader=base_cases.open_lazily),
    "ImageFolder, own loader": lambda d, f: ImageFolder(d, f, loader=open_rgb),
    "Subset": lambda d, f: Subset(ImageFolder(d, f), [2, 1]),
    "any": lambda d, f: base_cases.Opened(sorted(d.rglob("*.png")), f),
    "HF": lambda d, f: base_cases.Rows(_from_files(d), f),
    "told": lambda d, f: base_cases.Told(sorted(d.rglob("*.png")), f),
}


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
