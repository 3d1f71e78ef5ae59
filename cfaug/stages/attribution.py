"""The attribution of a classifier of the run: which part of an image speaks for its target (Grad-CAM; Selvaraju et al., 2017).

heat = relu(sum_k mean_xy(d logit_y / d A_k) A_k)       A: the last feature map of the net, y: the class that it says
"""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cfaug.config import Recipe
from cfaug.data.images import Pixels
from cfaug.stages.attribute_classifiers import settings_of
from cfaug.stages.checked_inputs import Inputs
from cfaug.train import Mixture, TrainingSets, train_classifier, validation_set
from cfaug.train.models import as_input

_LOCK = threading.Lock()


class Attributed:
    """Image uint8 (H, W, C) -> heat (H, W), of the recipe's net trained with groups resampled; it is trained at the first call.

    ``name`` says what it depends on, without training it.
    """

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self.recipe, self.inputs = recipe, inputs
        self.name = f"grad-cam {inputs.digest} {recipe.train.model} {recipe.identity()['train']['weights']} {recipe.train.epochs} {recipe.seed}"
        self._net: nn.Module | None = None

    def __call__(self, image: Pixels) -> npt.NDArray[np.float32]:
        with _LOCK:  # masks are made by several threads, and a net's hooks are its own
            if self._net is None:
                self._net = self._trained()
            return grad_cam(self._net, image)

    def _trained(self) -> nn.Module:
        recipe, inputs = self.recipe, self.inputs
        sets = TrainingSets(inputs.train, inputs.grouper, grouping=recipe.train.groups)
        trained = train_classifier(
            "group_resampling",
            sets.of("group_resampling", Mixture(), recipe.seed),
            validation_set(inputs.val, inputs.grouper),
            settings_of(recipe),
            seed=recipe.seed,
            classes=inputs.schema[inputs.target].categories,
            progress=True,
        )
        return trained.model.eval()


def grad_cam(net: nn.Module, image: Pixels) -> npt.NDArray[np.float32]:
    """The heat (H, W) of the class that ``net`` says, from its last feature map."""
    maps: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, made: Any) -> None:
        if isinstance(made, torch.Tensor) and made.ndim == 4 and min(made.shape[2:]) > 1:
            maps.append(made)

    hooks = [part.register_forward_hook(keep) for part in net.modules() if not list(part.children())]
    try:
        with torch.enable_grad():
            shown = as_input(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]).requires_grad_()
            logits = net(shown)
            slope = torch.autograd.grad(logits[0, int(logits.argmax())], maps[-1])[0]
    finally:
        for hook in hooks:
            hook.remove()
    heat = torch.relu((slope.mean((2, 3), keepdim=True) * maps[-1]).sum(1))[0].detach().numpy()
    return np.asarray(cv2.resize(heat.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
