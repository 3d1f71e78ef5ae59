"""Data sets of Hugging Face: the image column is decoded to the held picture, and everything else is left to them.

A shallow copy of the data set has a feature in place of its ``Image`` that hands out the picture where it would decode,
so formats, ``with_transform`` functions and column selections are those of the library itself. Imported only for who has
``datasets`` in use.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import datasets
from PIL import ExifTags, Image, ImageOps

from cfaug.errors import UsageError
from cfaug.learn.image_types import ALPHA, carried, check_size, in_mode, like
from cfaug.learn.swap.base import Swappable
from cfaug.learn.swap.metadata import LABELS, scalar
from cfaug.learn.swap.patched_copy import Held, Seen, Twin

TABLES = ("pandas", "arrow", "polars")  # formats without decoded images
ARRAYS = ("torch", "numpy", "tensorflow", "jax")


@dataclass
class _PictureFeature(datasets.Image):  # type: ignore[misc]
    """An Image feature that decodes to the picture that is held; the file's header says mode and size."""

    held: Any = field(default=None, repr=False, compare=False)
    fixed_size: bool = field(default=False, repr=False, compare=False)

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        held = self.held
        if held.looking:
            raise Seen(datasets.Image(mode=self.mode).decode_example(value, token_per_repo_id))
        picture = held.picture
        if picture is None or not isinstance(value, dict):
            return super().decode_example(value, token_per_repo_id)
        source = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
        try:
            with Image.open(source) as header:
                mode = self.mode or header.mode
                if mode not in ALPHA:
                    return self._beside(header, in_mode(picture, mode))
        except FileNotFoundError:  # a remote file: only the library knows how it is fetched
            pass
        return like(picture, super().decode_example(value, token_per_repo_id), _nameless)

    def _beside(self, header: Image.Image, made: Image.Image) -> Image.Image:
        """What was made, with what the library leaves of the header, which turns the image by its orientation."""
        if not self.fixed_size:
            stands = Image.new("L", (1, 1))
            stands.info.update(carried(header))
            made.info.update(carried(ImageOps.exif_transpose(stands)))
            return made
        size = header.size
        # of a PNG the orientation is known only after decoding: asked for when the size cannot be right else
        asked = header.format != "PNG" or made.size != size
        if asked and header.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            size = size[::-1]
        check_size(made, size, _nameless)
        return made


def _nameless() -> str:
    return "a counterfactual"


class SwappableColumns(Swappable):
    """A ``datasets.Dataset`` with one Image column in use."""

    def __init__(self, dataset: datasets.Dataset, column: str, image_key: Any = None) -> None:
        super().__init__(dataset, image_key)
        self._held, self._column = Held(), column
        own = dataset.features[column]
        self._feature = _PictureFeature(mode=own.mode, decode=True, held=self._held)
        info = copy.copy(dataset.info)
        info.features = datasets.Features({**dataset.features, column: self._feature})
        self._twin = Twin(dataset, {"_info": info}, shared=True)
        named = [name for name, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)]
        named += [name for name in LABELS if name in dataset.features and name not in named]
        self._label = named[0] if named else None
        self._labels: datasets.Dataset | None = None
        others = [name for name in dataset.column_names if name != column]
        if self._label is None and len(others) == 1:
            self._label = others[0]

    def picture(self, i: int) -> Any:
        return self._held.look(self._twin, i)

    def swapped(self, i: int, picture: Image.Image) -> Any:
        self._feature.fixed_size = self.dataset.format["type"] in ARRAYS
        return self._held.make(self._twin, i, picture)

    def label(self, i: int) -> Any:
        if self._label is None:
            return None
        if self._labels is None:
            self._labels = self.dataset.select_columns(self._label).with_format(None)
        return scalar(self._labels[i][self._label])

    def label_from(self) -> str:
        return f"column {self._label!r}"

    def unlabelled(self) -> list[str]:
        return super().unlabelled() if self._label is None else []


def open_columns(dataset: Any, image_key: Any) -> Swappable | None:
    """A base of a ``datasets.Dataset`` with an Image column; None for anything else, UsageError for several columns."""
    if not isinstance(dataset, datasets.Dataset) or dataset.features is None:
        return None
    shown, kind = dataset.format["columns"], dataset.format["type"]
    if kind in TABLES:
        raise UsageError(
            f"base: expected items with images, came a data set of format {kind!r}, whose items are tables; take "
            ".with_format(None), 'torch' or 'numpy'"
        )
    columns = [n for n, f in dataset.features.items() if isinstance(f, datasets.Image) and f.decode and n in shown]
    if image_key in columns:
        return SwappableColumns(dataset, image_key, image_key)
    if len(columns) > 1:
        raise UsageError(
            f"base: expected one image column, came {', '.join(columns)}; say which by image_key= (one of these names)"
        )
    return SwappableColumns(dataset, columns[0], image_key) if columns else None
