"""The user's training loop: wrapper, transforms, collate function, stream. Of generation it knows only the shard reader.

| module | what |
|---|---|
| ``dataset`` | CounterfactualDataset: any map-style data set with counterfactuals mixed in |
| ``match``, ``labels`` | which samples belong to which image; whether labels and targets are the same classes |
| ``policies`` | what stands at an index, drawn from (seed, epoch, index) |
| ``epochs`` | the epoch in shared memory, and what a checkpoint says of it |
| ``guard`` | nothing of validation or test reaches training |
| ``swap/`` | how an image is swapped inside a data set, before its transform |
| ``image_types`` | images as PIL, tensor or array, and where they stand in an item |
| ``pixel_swap`` | swapping an image that is recognised by its pixels: below ``transform``, ``collate`` and ``albumentations`` |
| ``stream`` | counterfactuals alone, as a webdataset pipeline |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfaug.lazy import lazy

if TYPE_CHECKING:
    from cfaug.learn.collate import MixingCollate as MixingCollate
    from cfaug.learn.dataset import CounterfactualDataset as CounterfactualDataset
    from cfaug.learn.guard import open_training_shards as open_training_shards
    from cfaug.learn.policies import Draw as Draw
    from cfaug.learn.stream import CounterfactualStream as CounterfactualStream
    from cfaug.learn.transform import RandomCounterfactual as RandomCounterfactual

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "collate": "MixingCollate",
        "dataset": "CounterfactualDataset",
        "guard": "open_training_shards",
        "policies": "Draw",
        "stream": "CounterfactualStream",
        "transform": "RandomCounterfactual",
    },
)
