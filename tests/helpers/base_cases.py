"""Data sets of every kind, each made from the images that it is to show: N of them, 6 x 5 pixels, labels i % 2.

A case is a function (images, folder) -> data set, ``images`` uint8 (N, 6, 5, 3). Two of one case, made from different
images, differ in nothing else. The classes are at module level: spawned workers import them.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import tv_tensors
from torchvision.datasets import (
    CIFAR10,
    MNIST,
    DatasetFolder,
    ImageFolder,
    VisionDataset,
    wrap_dataset_for_transforms_v2,
)
from torchvision.io import decode_image
from torchvision.transforms import v2

from cfaug.data import ArrayDataset, Attribute, FolderDataset, Schema

N = 8
SAMPLE_IMAGES = np.random.default_rng(0).integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
Labelled = namedtuple("Labelled", "image label note")
TO_FLOAT = v2.Compose([v2.ToImage(), v2.Resize((4, 4)), v2.ToDtype(torch.float32, scale=True)])


def plus_one(label: int) -> int:
    return label + 1


def write_pngs(images: np.ndarray, folder: Path) -> list[Path]:
    """Two class folders, in the order of the images; every image under the same name, whatever it shows."""
    paths = []
    for i, image in enumerate(images):
        path = folder / f"class_{2 * i // N}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def open_lazily(path: str) -> Image.Image:
    return Image.open(path)


def open_tensor(path: str) -> torch.Tensor:
    return decode_image(path)


def image_folder(images: np.ndarray, folder: Path, **options: Any) -> ImageFolder:
    write_pngs(images, folder)
    return ImageFolder(folder, **options)


class WithPath(ImageFolder):
    """The common subclass that also tells the path: its own __getitem__."""

    def __getitem__(self, i: int) -> Any:
        return (*super().__getitem__(i), Path(self.samples[i][0]).name)


class Plain(Dataset):
    """``make(image, i)`` of an image, untransformed unless ``transform`` is given."""

    def __init__(self, images: np.ndarray, make: Callable[[Any, int], Any], transform: Any = None) -> None:
        self.images, self.make, self.transform = images, make, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        image = Image.fromarray(self.images[i])
        return self.make(image if self.transform is None else self.transform(image), i)


def pair(image: Any, i: int) -> Any:
    return image, i % 2


def bare(image: Any, i: int) -> Any:
    return image


def in_list(image: Any, i: int) -> Any:
    return [image, i % 2]


def named(image: Any, i: int) -> Any:
    return Labelled(image, i % 2, f"note {i}")


def in_dict(image: Any, i: int) -> Any:
    return {"id": i, "pixel_values": image, "label": i % 2}


def image_second(image: Any, i: int) -> Any:
    return i, image, i % 2


def nested(image: Any, i: int) -> Any:
    return (image, i), i % 2


def tensor(image: Any, i: int) -> Any:
    return v2.functional.pil_to_tensor(image), torch.tensor(i % 2)


def grey_tensor(image: Any, i: int) -> Any:
    return v2.functional.pil_to_tensor(image.convert("L")), i % 2


def tv_image(image: Any, i: int) -> Any:
    return tv_tensors.Image(image), i % 2


def array(image: Any, i: int) -> Any:
    return {"image": np.array(image), "label": np.int64(i % 2)}


def flat_array(image: Any, i: int) -> Any:
    return np.array(image.convert("L")), i % 2


def with_mask(image: Any, i: int) -> Any:
    return image, tv_tensors.Mask(torch.full((1, 6, 5), i, dtype=torch.uint8)), i % 2


class Opened(Dataset):
    """Files opened when asked for, perhaps not loaded; ``transform`` given inside of ``with``."""

    def __init__(self, paths: list[Path], transform: Any = None) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        if self.transform is None:
            return Image.open(self.paths[i]), i % 2
        with Image.open(self.paths[i]) as image:
            return self.transform(image), i % 2


class Told(Opened):
    """Its transform has no name that anybody looks for; it shows PIL images beside."""

    def __init__(self, paths: list[Path], hidden: Any) -> None:
        super().__init__(paths)
        self.hidden = hidden

    def __getitem__(self, i: int) -> Any:
        image, label = super().__getitem__(i)
        return self.hidden(image), label


class Albumented(Plain):
    """As albumentations is called: ``transform(image=array)["image"]``."""

    def __getitem__(self, i: int) -> Any:
        return self.transform(image=self.images[i])["image"], i % 2


def albumented(images: np.ndarray) -> Albumented:
    import albumentations

    return Albumented(images, pair, albumentations.Compose([albumentations.Transpose(p=1.0)]))


class Sample(Plain):
    """A transform of the whole sample."""

    def __getitem__(self, i: int) -> Any:
        return self.transform({"label": i % 2, "image": Image.fromarray(self.images[i])})


class Views(Plain):
    """Two views of an image, and the image itself."""

    def __getitem__(self, i: int) -> Any:
        image = Image.fromarray(self.images[i])
        return {"views": (self.transform(image), self.transform(image)), "raw": image, "label": i % 2}


class Joint(VisionDataset):
    """Segmentation as torchvision does it: ``transforms(image, mask)``."""

    def __init__(self, images: np.ndarray, transforms: Any) -> None:
        super().__init__("", transforms=transforms)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transforms(Image.fromarray(self.images[i]), Image.new("L", (5, 6), i))


def turn_both(image: Any, mask: Any) -> Any:
    return TO_FLOAT(image.transpose(Image.Transpose.ROTATE_90)), mask.transpose(Image.Transpose.ROTATE_90)


class Listed(Dataset):
    """A list of arrays, and one of tables beside it."""

    def __init__(self, images: np.ndarray, transform: Any = None) -> None:
        self.images, self.transform = [image.copy() for image in images], transform
        self.tables = [pd.DataFrame({"label": [i % 2]}) for i in range(N)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        image, label = self.images[i], int(self.tables[i]["label"][0])
        return (image if self.transform is None else self.transform(image)), label


class Rows(Dataset):
    """What people write around a Hugging Face data set, or around any other: its rows, transformed."""

    def __init__(self, rows: Any, transform: Any, take: Any = "image") -> None:
        self.rows, self.transform, self.take = rows, transform, take

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        row = self.rows[i]
        return {"x": self.transform(row[self.take]), "y": i % 2}


class Cached(Dataset):
    """Keeps every item of another data set; transforms it on the way out."""

    def __init__(self, inner: Any, transform: Any) -> None:
        self.inner, self.transform, self.kept = inner, transform, {}

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        if i not in self.kept:
            self.kept[i] = self.inner[i]
        image, label = self.kept[i]
        return self.transform(image), label


class Wilds:
    """As WILDS 2.0 makes triples: get_input, y_array, metadata_array; no torch Dataset."""

    def __init__(self, images: np.ndarray, folder: Path, lazy: bool = False) -> None:
        self.paths, self.lazy = write_pngs(images, folder), lazy
        self._y_array = torch.arange(N) % 2
        self._metadata_array = torch.stack([torch.arange(N), self._y_array], dim=1)

    @property
    def y_array(self) -> torch.Tensor:
        return self._y_array

    @property
    def metadata_array(self) -> torch.Tensor:
        return self._metadata_array

    def __len__(self) -> int:
        return len(self.y_array)

    def __getitem__(self, i: int) -> Any:
        return self.get_input(i), self.y_array[i], self.metadata_array[i]

    def get_input(self, i: int) -> Image.Image:
        image = Image.open(self.paths[i])
        return image if self.lazy else image.convert("RGB")


class WildsSubset(Wilds):
    """As WILDS' own: it inherits get_input, which it cannot answer."""

    def __init__(self, dataset: Wilds, indices: Any, transform: Any, do_transform_y: bool = False) -> None:
        self.dataset, self.indices = dataset, indices
        self.transform, self.do_transform_y = transform, do_transform_y

    @property
    def y_array(self) -> torch.Tensor:
        return self.dataset._y_array[self.indices]

    @property
    def metadata_array(self) -> torch.Tensor:
        return self.dataset.metadata_array[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        x, y, metadata = self.dataset[self.indices[i]]
        if self.transform is not None:
            if self.do_transform_y:
                x, y = self.transform(x, y)
            else:
                x = self.transform(x)
        return x, y, metadata

    def get_input(self, i: int) -> Any:
        raise NotImplementedError


def float_both(x: Any, y: Any) -> Any:
    return TO_FLOAT(x), y + 10


def schema_table() -> tuple[Schema, pd.DataFrame]:
    table = pd.DataFrame({"digit": [str(i % 2) for i in range(N)]}, index=pd.Index([f"k{i}" for i in range(N)]))
    return Schema([Attribute("digit")], "digit", []).fit(table), table


def array_dataset(images: np.ndarray, transform: Any = None) -> ArrayDataset:
    schema, table = schema_table()
    return ArrayDataset(images, table, schema, "train", transform)


def folder_dataset(images: np.ndarray, folder: Path, transform: Any = None) -> FolderDataset:
    paths = write_pngs(images, folder)
    Image.fromarray(images[1]).convert("L").save(paths[1])  # grey among the coloured
    names = [path.relative_to(folder).as_posix() for path in paths]
    pd.DataFrame({"file_name": names, "split": "train", "digit": [i % 2 for i in range(N)]}).to_csv(
        folder / "metadata.csv", index=False
    )
    return FolderDataset(folder, "train", "digit", transform=transform)


def mnist(images: np.ndarray, folder: Path, **options: Any) -> MNIST:
    """MNIST as torchvision reads it, from the raw files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = b"".join(n.to_bytes(4, "big") for n in (0x0803, N, 6, 5))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images[..., 0].tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            (0x0801).to_bytes(4, "big") + N.to_bytes(4, "big") + bytes(i % 2 for i in range(N))
        )
    return MNIST(folder, **options)


def cifar(images: np.ndarray, **options: Any) -> CIFAR10:
    """CIFAR10 as it is once its archive has been read."""
    data = CIFAR10.__new__(CIFAR10)
    VisionDataset.__init__(data, "", **options)
    data.data, data.targets, data.train = images, [i % 2 for i in range(N)], True
    return data


def columns(images: np.ndarray, mode: str | None = None) -> Any:
    """A datasets.Dataset in memory."""
    import datasets

    rows = {"label": [i % 2 for i in range(N)], "image": [Image.fromarray(image) for image in images]}
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["even", "odd"]), "image": datasets.Image(mode=mode)}
    )
    return datasets.Dataset.from_dict(rows, features=features)


def float_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"pixel_values": [TO_FLOAT(image) for image in batch["image"]], "labels": batch["label"]}


CASES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "ImageFolder": lambda x, d: image_folder(x, d),
    "ImageFolder, transforms": lambda x, d: image_folder(x, d, transform=TO_FLOAT, target_transform=plus_one),
    "ImageFolder, lazy loader": lambda x, d: image_folder(x, d, loader=open_lazily),
    "DatasetFolder of tensors": lambda x, d: DatasetFolder(write_pngs(x, d) and d, open_tensor, (".png",)),
    "ImageFolder, subclass": lambda x, d: WithPath(write_pngs(x, d) and d, TO_FLOAT),
    "ImageFolder, wrapped for v2": lambda x, d: wrap_dataset_for_transforms_v2(image_folder(x, d, transform=TO_FLOAT)),
    "MNIST": lambda x, d: mnist(x, d, transform=TO_FLOAT),
    "MNIST, bare": lambda x, d: mnist(x, d),
    "CIFAR10": lambda x, d: cifar(x, transform=TO_FLOAT, target_transform=plus_one),
    "joint transforms": lambda x, d: Joint(x, turn_both),
    "ArrayDataset": lambda x, d: array_dataset(x, TO_FLOAT),
    "ArrayDataset, grey": lambda x, d: array_dataset(x[..., :1]),
    "FolderDataset": lambda x, d: folder_dataset(x, d),
    "Subset": lambda x, d: Subset(image_folder(x, d, transform=TO_FLOAT), [5, 0, 5, 2]),
    "Subset of Subset": lambda x, d: Subset(Subset(array_dataset(x), np.array([6, 1, 3])), torch.tensor([2, 0])),
    "ConcatDataset": lambda x, d: ConcatDataset([image_folder(x, d), Subset(cifar(x), [4, 3])]),
    "HF": lambda x, d: columns(x),
    "HF, grey": lambda x, d: columns(x[..., 0]),
    "HF, mode L": lambda x, d: columns(x, "L"),
    "HF, torch": lambda x, d: columns(x).with_format("torch"),
    "HF, numpy": lambda x, d: columns(x).with_format("numpy"),
    "HF, columns": lambda x, d: columns(x).with_format("torch", columns=["image"], output_all_columns=True),
    "HF, transform": lambda x, d: columns(x).with_transform(float_batch),
    "HF, shuffled": lambda x, d: columns(x).shuffle(seed=1).select(range(5)),
    "HF in a torch Dataset": lambda x, d: Rows(columns(x), TO_FLOAT),
    "WILDS": lambda x, d: Wilds(x, d),
    "WILDS, lazy": lambda x, d: Wilds(x, d, lazy=True),
    "WILDS subset": lambda x, d: WildsSubset(Wilds(x, d), np.array([6, 1, 3]), TO_FLOAT),
    "WILDS subset, joint": lambda x, d: WildsSubset(Wilds(x, d), np.array([6, 1]), float_both, do_transform_y=True),
    "Subset of a WILDS subset": lambda x, d: Subset(WildsSubset(Wilds(x, d), np.array([6, 1, 3]), TO_FLOAT), [2, 0]),
    "lazily opened": lambda x, d: Opened(write_pngs(x, d)),
    "lazily opened, transform": lambda x, d: Opened(write_pngs(x, d), TO_FLOAT),
    "pair": lambda x, d: Plain(x, pair),
    "pair, transform": lambda x, d: Plain(x, pair, TO_FLOAT),
    "bare": lambda x, d: Plain(x, bare),
    "list": lambda x, d: Plain(x, in_list),
    "named tuple": lambda x, d: Plain(x, named),
    "dict": lambda x, d: Plain(x, in_dict),
    "dict, transform": lambda x, d: Plain(x, in_dict, TO_FLOAT),
    "image second": lambda x, d: Plain(x, image_second),
    "nested": lambda x, d: Plain(x, nested),
    "uint8 tensor": lambda x, d: Plain(x, tensor),
    "uint8 tensor, grey": lambda x, d: Plain(x, grey_tensor),
    "tv_tensor": lambda x, d: Plain(x, tv_image),
    "array": lambda x, d: Plain(x, array),
    "flat array": lambda x, d: Plain(x, flat_array),
    "list of arrays": lambda x, d: Listed(x),
    "list of arrays, transform": lambda x, d: Listed(x, TO_FLOAT),
    "mask beside": lambda x, d: Plain(x, with_mask),
    "TensorDataset": lambda x, d: TensorDataset(torch.from_numpy(x.copy()).permute(0, 3, 1, 2), torch.arange(N) % 2),
    "albumentations": lambda x, d: albumented(x),
    "whole sample": lambda x, d: Sample(x, pair, v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(1.0)])),
    "views": lambda x, d: Views(x, pair, TO_FLOAT),
    "cached": lambda x, d: Cached(image_folder(x, d), TO_FLOAT),
}


class Zipped(Dataset):
    """The images of several bases' items, swapped for the others: (bases, C, H, W)."""

    def __init__(self, bases: list[Any], images: np.ndarray) -> None:
        self.bases, self.images = bases, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        items = [base.swapped(i, Image.fromarray(self.images[i])) for base in self.bases]
        return torch.stack([item["pixel_values"] if isinstance(item, dict) else item[0] for item in items])


def exactly(one: Any, other: Any) -> bool:
    """The same types all the way down, and the same bits."""
    if isinstance(one, Image.Image):
        # a picture that was not read from this file cannot be of the file's class
        return isinstance(other, Image.Image) and one.mode == other.mode and one.tobytes() == other.tobytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(exactly(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(exactly, one, other))
    return bool(one == other)
