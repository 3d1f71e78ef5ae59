"""The hook for the image column of a Hugging Face data set: its feature decodes to the held picture.

Everything else is left to the library, so formats, ``with_transform`` functions and column selections are its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import datasets
from PIL import Image

from cfaug.errors import UsageError
from cfaug.learn.image_types import ALPHA, in_mode
from cfaug.learn.swap.patched_copy import Held

TABLES = ("pandas", "arrow", "polars")  # formats without decoded images


@dataclass
class _PictureFeature(datasets.Image):  # type: ignore[misc]
    """An Image feature that decodes to the picture that is held; only the file's header is read, for its mode."""

    held: Held = field(default_factory=Held, repr=False, compare=False)

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        held = self.held
        if held.idle(self, value):
            return super().decode_example(value, token_per_repo_id)
        held.source = value
        if held.picture is not None and isinstance(value, dict):
            source = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
            try:
                with Image.open(source) as header:
                    mode = self.mode or header.mode
            except FileNotFoundError:  # a remote file: only the library knows how it is fetched
                mode = "RGBA"
            if mode not in ALPHA:
                held.hook = self
                return in_mode(held.picture, mode)
        return held.place(self, super().decode_example(value, token_per_repo_id))


def column_hooks(dataset: datasets.Dataset, held: Held, image_key: Any) -> dict[str, Any]:
    """The attributes of a copy of ``dataset`` whose image column decodes to the held picture; empty without such a column.

    UsageError for several image columns where ``image_key`` names none of them, and for formats whose items are tables.
    """
    shown, kind = dataset.format["columns"], dataset.format["type"]
    if kind in TABLES:
        raise UsageError(
            f"base: expected items with images, got a data set of format {kind!r}, whose items are tables; take "
            ".with_format(None), 'torch' or 'numpy'"
        )
    columns = [n for n, f in dataset.features.items() if isinstance(f, datasets.Image) and f.decode and n in shown]
    if image_key in columns:
        columns = [image_key]
    if len(columns) > 1:
        raise UsageError(
            f"base: expected one image column, got {', '.join(columns)}; say which by image_key= (one of these names)"
        )
    if not columns:
        return {}
    info = copy.copy(dataset.info)
    feature = _PictureFeature(mode=dataset.features[columns[0]].mode, decode=True, held=held)
    info.features = datasets.Features({**dataset.features, columns[0]: feature})
    return {"_info": info}
