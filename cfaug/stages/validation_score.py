"""The score that decides when the training of a decoder stops: do its counterfactuals show the values that were asked for,
and keep the other attributes?

    score = product over the image's categorical parents of the share of counterfactuals in which it is read as intended

Effectiveness for the intervened attributes times preservation for the other attributes, in [0, 1]; a decoder that ignores its
attributes fails the first, one that redraws the object fails the second. Interventions are those of the plan's strategy,
on images of the validation split: no decoder is trained on them, so one that has only memorised its images does not score
high. The readers are trained on training images.

Not promised: that readers trained on confounded images (where the source cannot make unconfounded ones) see every shortcut.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cfaug.causal import SCM
from cfaug.config import Recipe
from cfaug.data import load_images
from cfaug.decode import CounterfactualModel, ImageMechanism
from cfaug.judge.axioms import counterfactuals
from cfaug.stages.attribute_classifiers import Reader, attribute_readers, quantised
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import balanced_acts
from cfaug.train.models import as_input

IMAGES = 200
"""Validation images of a score, at most: its standard error is 2 points where the shares are about 0.9, and it takes seconds."""


class ValidationScore:
    """Scores a decoder on the same validation images and interventions every time.

    Args:
        recipe: how its classifiers are trained, and the seed.
        inputs: the opened data; a parent of the image is categorical.
        scm: fitted, of the same schema as the decoders to come.
        progress: whether to show a bar while the readers are trained (once, at the first score).
    """

    def __init__(self, recipe: Recipe, inputs: Inputs, scm: SCM, progress: bool = False) -> None:
        self.recipe, self.inputs, self.scm, self.progress = recipe, inputs, scm, progress
        self._acts = balanced_acts(inputs.val, IMAGES, recipe.seed)
        self._readers: dict[str, Reader] | None = None

    def shares(self, decoder: ImageMechanism) -> dict[str, float]:
        """Attribute -> share of the counterfactuals in which it is read as intended."""
        if self._readers is None:
            with torch.enable_grad():  # a score is asked for without gradients
                self._readers, _ = attribute_readers(self.recipe, self.inputs, self._acts, self.progress)
        val = self.inputs.val
        rows = [i for i in range(len(val)) if val.key(i) in self._acts]
        acts = [self._acts[val.key(i)] for i in rows]
        images, table = counterfactuals(
            CounterfactualModel(self.scm, decoder),
            as_input(load_images(val, rows, progress=False)),
            val.table.iloc[rows],
            acts,
            self.recipe.seed,
            self.recipe.generate.batch_size,
        )
        pixels = quantised(images)
        found = {}
        for name, reader in self._readers.items():
            known = table[name].notna().to_numpy()
            intended = np.asarray(self.inputs.schema.index(name, table[name][known]))
            found[name] = float((reader.predict(pixels).numpy()[known] == intended).mean()) if known.any() else 1.0
        return found

    def __call__(self, decoder: ImageMechanism) -> float:
        """Effectiveness times preservation, in [0, 1]."""
        return math.prod(self.shares(decoder).values())
