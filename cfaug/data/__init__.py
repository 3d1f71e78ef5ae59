"""Floor 0: attributes and their schema, groups, and the data sets that carry both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfaug.data.datasets import ArrayDataset, AttributeDataset, FolderDataset
from cfaug.data.groups import Grouper
from cfaug.data.images import pixel_digest
from cfaug.data.micro_batch import Sources
from cfaug.data.schema import Attribute, Schema
from cfaug.data.sources import SOURCES, can_unconfound, measures_of, open_source

if TYPE_CHECKING:
    from cfaug.data.loading import load_images, load_padded

__all__ = [
    "SOURCES",
    "ArrayDataset",
    "Attribute",
    "AttributeDataset",
    "FolderDataset",
    "Grouper",
    "Schema",
    "Sources",
    "can_unconfound",
    "load_images",
    "load_padded",
    "measures_of",
    "open_source",
    "pixel_digest",
]


def __getattr__(name: str) -> Any:
    if name in ("load_images", "load_padded"):  # need torch: loaded on first use
        from cfaug.data import loading as loading

        return getattr(loading, name)
    raise AttributeError(f"module 'cfaug.data' has no attribute {name!r}")
