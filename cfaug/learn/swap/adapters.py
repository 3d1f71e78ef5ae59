"""The kinds of data sets that ``open_base`` tells apart, from the best known to any at all.

Each kind is opened by a function (dataset, image_key) -> Swappable, or None when the data set is of another kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader, pil_loader

from cfaug.data import ArrayDataset, FolderDataset
from cfaug.data.images import FORMATS, to_pil
from cfaug.learn.image_types import carried, in_mode, is_unloaded, like
from cfaug.learn.spread import spread
from cfaug.learn.swap.base import PROBED, Swappable
from cfaug.learn.swap.images import is_plain, one_mode
from cfaug.learn.swap.items import anything
from cfaug.learn.swap.metadata import is_wilds
from cfaug.learn.swap.nested import concat, stack, subset, wrapper
from cfaug.learn.swap.patched_copy import Held, Twin

# --- cfaug's own data sets


class SwappableAdapter(Swappable):
    """ArrayDataset and FolderDataset: (image, target code), the image through ``transform``."""

    def __init__(self, dataset: ArrayDataset | FolderDataset, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        schema = dataset.schema
        self._targets: npt.NDArray[np.integer[Any]] | None = None
        if schema.target is not None:
            self._targets = np.asarray(schema.index(schema.target, dataset.table[schema.target]))
        self._grey = np.full(len(dataset), -1, dtype=np.int8)

    def picture(self, i: int) -> Image.Image:
        return to_pil(self.dataset.image(i))

    def swapped(self, i: int, picture: Image.Image) -> Any:
        if self._targets is None:
            return self.item(i)  # says that there is no target
        transform, image = self.dataset.transform, in_mode(picture, self._mode(i))
        return (image if transform is None else transform(image)), int(self._targets[i])

    def label(self, i: int) -> int | None:
        return None if self._targets is None else int(self._targets[i])

    def label_from(self) -> str:
        return f"column {self.dataset.schema.target!r}"

    def _mode(self, i: int) -> str:
        if isinstance(self.dataset, ArrayDataset):
            return "L" if self.dataset.images.shape[3] == 1 else "RGB"
        if self._grey[i] < 0:  # the header is read once; as FolderDataset does, what is not grey becomes RGB
            try:
                with Image.open(Path(self.dataset.root) / self.dataset.key(i), formats=FORMATS) as header:
                    self._grey[i] = header.mode in ("L", "1")
            except OSError:  # a file that is gone or damaged: the data set says which
                self._grey[i] = self.picture(i).mode == "L"
        return "L" if self._grey[i] else "RGB"


def adapter(dataset: Any, image_key: Any) -> Swappable | None:
    made, kind = type(dataset), ArrayDataset if isinstance(dataset, ArrayDataset) else FolderDataset
    own = isinstance(dataset, kind) and made.__getitem__ is kind.__getitem__ and made.image is kind.image
    return SwappableAdapter(dataset, image_key) if own else None


# --- torchvision's folders


class SwappableFiles(Swappable):
    """ImageFolder and DatasetFolder: ``loader(path)`` through the transforms.

    Of a file that the default loader would make RGB the header is read, and nothing decoded. Another loader is asked for
    this very item, whose type and mode count: nothing is decoded when it opens lazily.
    """

    def __init__(self, dataset: DatasetFolder, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._held = Held()
        self._twin = Twin(dataset, {"loader": self._load}, shared=True)

    def _rgb(self) -> bool:
        import torchvision

        loader = self.dataset.loader
        return loader is pil_loader or (loader is default_loader and torchvision.get_image_backend() == "PIL")

    def _load(self, path: str) -> Any:
        held = self._held
        if held.picture is None:
            return self.dataset.loader(path)
        if not self._rgb():
            return like(held.picture, self.dataset.loader(path), lambda: path)
        made = in_mode(held.picture, "RGB")
        with Image.open(path) as header:  # what it says of a rotation stays in the image that the loader makes of it
            made.info.update(carried(header))
        return made

    def picture(self, i: int) -> Any:
        return self.dataset.loader(self.dataset.samples[i][0])

    def swapped(self, i: int, picture: Image.Image) -> Any:
        return self._held.make(self._twin, i, picture)

    def label(self, i: int) -> Any:
        label, change = self.dataset.samples[i][1], self.dataset.target_transform
        return label if change is None else change(label)

    def label_from(self) -> str:
        return "the folders" if self.dataset.target_transform is None else "the folders, by target_transform"


def files(dataset: Any, image_key: Any) -> Swappable | None:
    # a class of its own making may keep what the loader gave: it must not be given anything else
    if not isinstance(dataset, DatasetFolder) or type(dataset).__getitem__ is not DatasetFolder.__getitem__:
        return None
    base = SwappableFiles(dataset, image_key)
    return base if not len(dataset) or base._rgb() or is_plain(base.picture(0)) else None


# --- WILDS


class SwappableWilds(Swappable):
    """(x, y, metadata) from ``get_input(i)``, ``y_array[i]`` and ``metadata_array[i]``.

    The mode is known where the probed inputs are lazily opened, or all of one mode; else the input is decoded.
    """

    def __init__(self, dataset: Any, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        probed = [dataset.get_input(i) for i in spread(len(dataset), PROBED)]
        self._mode = None if any(map(is_unloaded, probed)) else one_mode(probed)

    def picture(self, i: int) -> Any:
        return self.dataset.get_input(i)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        data = self.dataset
        if self._mode is None:
            image = like(picture, data.get_input(i), lambda: f"item {i}")
        else:
            image = in_mode(picture, self._mode)
        return image, data.y_array[i], data.metadata_array[i]


def wilds(dataset: Any, image_key: Any) -> Swappable | None:
    if not is_wilds(dataset) or not len(dataset):
        return None
    item = dataset[0]
    stored = [dataset.y_array[0], dataset.metadata_array[0]]
    if not isinstance(item, tuple) or len(item) != 3 or not is_plain(item[0]):
        return None
    same = all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(item[1:], stored))
    return SwappableWilds(dataset, image_key) if same else None


def huggingface(dataset: Any, image_key: Any) -> Swappable | None:
    if not type(dataset).__module__.startswith("datasets."):
        return None  # datasets is imported only by those who use it
    from cfaug.learn.swap.huggingface import open_columns

    return open_columns(dataset, image_key)


OPENERS: tuple[Callable[[Any, Any], Swappable | None], ...] = (
    subset, concat, stack, adapter, files, huggingface, wrapper, wilds, anything,
)  # fmt: skip
