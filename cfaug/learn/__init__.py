"""Training on the mixture: wrapper, transform, objectives, methods. Of generation it knows only the shards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfaug.learn.assembly import Mixture, TrainingSets, training_set, validation_set
    from cfaug.learn.bases import Swappable, open_base
    from cfaug.learn.collate import MixingCollate
    from cfaug.learn.draws import Draw
    from cfaug.learn.guard import open_training_shards
    from cfaug.learn.methods import METHODS, Method
    from cfaug.learn.mixing import CounterfactualDataset
    from cfaug.learn.models import MODELS, SmallCNN
    from cfaug.learn.objectives import GroupDRO
    from cfaug.learn.sources import MixedImages, StreamedImages, TensorImages, TrainingSet
    from cfaug.learn.streaming import CounterfactualStream, StreamLoader
    from cfaug.learn.train import TrainedClassifier, TrainSettings, Validation, predict, train_classifier
    from cfaug.learn.transforms import RandomCounterfactual

_HOMES = {
    "CounterfactualDataset": "mixing",
    "CounterfactualStream": "streaming",
    "StreamLoader": "streaming",
    "MixingCollate": "collate",
    "Swappable": "bases",
    "open_base": "bases",
    "open_training_shards": "guard",
    "Draw": "draws",
    "RandomCounterfactual": "transforms",
    "GroupDRO": "objectives",
    "METHODS": "methods",
    "Method": "methods",
    "MODELS": "models",
    "SmallCNN": "models",
    "MixedImages": "sources",
    "StreamedImages": "sources",
    "TensorImages": "sources",
    "TrainingSet": "sources",
    "TrainSettings": "train",
    "TrainedClassifier": "train",
    "Validation": "train",
    "Mixture": "assembly",
    "TrainingSets": "assembly",
    "predict": "train",
    "train_classifier": "train",
    "training_set": "assembly",
    "validation_set": "assembly",
}

__all__ = [
    "METHODS",
    "MODELS",
    "CounterfactualDataset",
    "CounterfactualStream",
    "Draw",
    "GroupDRO",
    "Method",
    "MixedImages",
    "MixingCollate",
    "Mixture",
    "RandomCounterfactual",
    "SmallCNN",
    "StreamLoader",
    "StreamedImages",
    "Swappable",
    "TensorImages",
    "TrainSettings",
    "TrainedClassifier",
    "TrainingSet",
    "TrainingSets",
    "Validation",
    "open_base",
    "open_training_shards",
    "predict",
    "train_classifier",
    "training_set",
    "validation_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cfaug.learn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cfaug.learn.{_HOMES[name]}"), name)
