"""Our own trainer.

| module | what |
|---|---|
| ``methods`` | the rows of a results table: data, sampler and objective of each |
| ``method_data``, ``in_memory`` | what a method trains on |
| ``training_sets`` | where a batch comes from |
| ``models``, ``weights_file`` | classifiers and their pretrained weights |
| ``trainer``, ``epochs`` | the stages of a method, and the loop over epochs |
| ``validation`` | what a classifier says, and the choice of the epoch |
| ``features``, ``frozen``, ``heads`` | a frozen net: features computed once, and linear heads on them |
| ``objectives/`` | losses, sampling weights and schedules, usable in any loop |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfaug.lazy import lazy

if TYPE_CHECKING:
    from cfaug.train.method_data import Mixture as Mixture
    from cfaug.train.method_data import TrainingSets as TrainingSets
    from cfaug.train.method_data import training_set as training_set
    from cfaug.train.method_data import validation_set as validation_set
    from cfaug.train.methods import METHODS as METHODS
    from cfaug.train.methods import Method as Method
    from cfaug.train.models import Classifier as Classifier
    from cfaug.train.models import SmallCNN as SmallCNN
    from cfaug.train.objectives import GroupDRO as GroupDRO
    from cfaug.train.trainer import TrainedClassifier as TrainedClassifier
    from cfaug.train.trainer import TrainSettings as TrainSettings
    from cfaug.train.trainer import Validation as Validation
    from cfaug.train.trainer import predict as predict
    from cfaug.train.trainer import train_classifier as train_classifier
    from cfaug.train.training_sets import MixedImages as MixedImages
    from cfaug.train.training_sets import StreamedImages as StreamedImages
    from cfaug.train.training_sets import TensorImages as TensorImages
    from cfaug.train.training_sets import TrainingSet as TrainingSet

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "method_data": "Mixture TrainingSets training_set validation_set",
        "methods": "METHODS Method",
        "models": "Classifier SmallCNN",
        "objectives": "GroupDRO",
        "trainer": "TrainSettings TrainedClassifier Validation predict train_classifier",
        "training_sets": "MixedImages StreamedImages TensorImages TrainingSet",
    },
)
