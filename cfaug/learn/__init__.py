"""The user's training loop: wrapper, transform, collate function, stream. Of generation it knows only the shard reader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfaug.learn.collate import MixingCollate
    from cfaug.learn.dataset import CounterfactualDataset
    from cfaug.learn.guard import open_training_shards
    from cfaug.learn.policies import Draw
    from cfaug.learn.stream import CounterfactualStream, StreamLoader
    from cfaug.learn.swap import Swappable, open_base
    from cfaug.learn.transform import RandomCounterfactual

_HOMES = {
    "CounterfactualDataset": "dataset",
    "CounterfactualStream": "stream",
    "StreamLoader": "stream",
    "MixingCollate": "collate",
    "Swappable": "swap",
    "open_base": "swap",
    "open_training_shards": "guard",
    "Draw": "policies",
    "RandomCounterfactual": "transform",
}

__all__ = [
    "CounterfactualDataset",
    "CounterfactualStream",
    "Draw",
    "MixingCollate",
    "RandomCounterfactual",
    "StreamLoader",
    "Swappable",
    "open_base",
    "open_training_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cfaug.learn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cfaug.learn.{_HOMES[name]}"), name)
