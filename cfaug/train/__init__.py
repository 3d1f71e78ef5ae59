"""Our own trainer: methods, models, training sets, objectives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfaug.train.method_data import Mixture, TrainingSets, training_set, validation_set
    from cfaug.train.methods import METHODS, Method
    from cfaug.train.models import MODELS, SmallCNN
    from cfaug.train.objectives import GroupDRO
    from cfaug.train.trainer import TrainedClassifier, TrainSettings, Validation, predict, train_classifier
    from cfaug.train.training_sets import MixedImages, StreamedImages, TensorImages, TrainingSet

_HOMES = {
    "GroupDRO": "objectives",
    "METHODS": "methods",
    "Method": "methods",
    "MODELS": "models",
    "SmallCNN": "models",
    "MixedImages": "training_sets",
    "StreamedImages": "training_sets",
    "TensorImages": "training_sets",
    "TrainingSet": "training_sets",
    "TrainSettings": "trainer",
    "TrainedClassifier": "trainer",
    "Validation": "trainer",
    "Mixture": "method_data",
    "TrainingSets": "method_data",
    "predict": "trainer",
    "train_classifier": "trainer",
    "training_set": "method_data",
    "validation_set": "method_data",
}

__all__ = [
    "METHODS",
    "MODELS",
    "GroupDRO",
    "Method",
    "MixedImages",
    "Mixture",
    "SmallCNN",
    "StreamedImages",
    "TensorImages",
    "TrainSettings",
    "TrainedClassifier",
    "TrainingSet",
    "TrainingSets",
    "Validation",
    "predict",
    "train_classifier",
    "training_set",
    "validation_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cfaug.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cfaug.train.{_HOMES[name]}"), name)
