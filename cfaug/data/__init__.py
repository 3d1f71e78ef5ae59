"""Floor 0: attributes and their schema, groups, and the data sets that carry both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfaug.lazy import lazy

if TYPE_CHECKING:
    from cfaug.data.datasets import ArrayDataset as ArrayDataset
    from cfaug.data.datasets import AttributeDataset as AttributeDataset
    from cfaug.data.datasets import duplicates_across_splits as duplicates_across_splits
    from cfaug.data.groups import Grouper as Grouper
    from cfaug.data.images import pixel_digest as pixel_digest
    from cfaug.data.loading import load_images as load_images
    from cfaug.data.loading import load_padded as load_padded
    from cfaug.data.micro_batch import Sources as Sources
    from cfaug.data.schema import Attribute as Attribute
    from cfaug.data.schema import Schema as Schema
    from cfaug.data.sources import SOURCES as SOURCES
    from cfaug.data.sources import can_unconfound as can_unconfound
    from cfaug.data.sources import measures_of as measures_of
    from cfaug.data.sources import open_source as open_source
    from cfaug.data.sources.folder import FolderDataset as FolderDataset

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "datasets": "ArrayDataset AttributeDataset duplicates_across_splits",
        "groups": "Grouper",
        "images": "pixel_digest",
        "loading": "load_images load_padded",  # needs torch
        "micro_batch": "Sources",
        "schema": "Attribute Schema",
        "sources": "SOURCES can_unconfound measures_of open_source",
        "sources.folder": "FolderDataset",
    },
)
