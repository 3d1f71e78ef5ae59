"""Floor 0: attributes and their schema, groups, and the data sets that carry both."""

from __future__ import annotations

from cfaug.data.attributes import Attribute, Schema
from cfaug.data.datasets import ArrayDataset, AttributeDataset, FolderDataset, pixel_digest
from cfaug.data.groups import Grouper
from cfaug.data.sources import SOURCES, can_unconfound, open_source

__all__ = [
    "SOURCES",
    "ArrayDataset",
    "Attribute",
    "AttributeDataset",
    "FolderDataset",
    "Grouper",
    "Schema",
    "can_unconfound",
    "open_source",
    "pixel_digest",
]
