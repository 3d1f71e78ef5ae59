"""Edits whose images move from their sources as their words move: the directional score of CF-CLIP (Yu et al., 2022) as a guide.

    s(x')   = cos(e(x') - e(x), e(words') - e(words))                                     e: a local model of the kind of CLIP
    scale   x_(t-1) += scale sqrt(alpha_(t-1)) sqrt(n) g / |g|,  g = d s(decode(x0)) / d x0     x0: what the sampler takes for clean (n numbers)
    draws   x' = argmax_k s(x'_k)                                                         x'_k: the edit under the k-th seed

The gradient goes to the clean estimate and not through the U-Net (He et al., 2024, MPGD), so that a step costs one decoding more. A gate
that asks the same model again learns nothing from it: an image that was made by a net's gradient pleases that net.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cfaug.data.images import Pixels
from cfaug.decode.diffusion.training import seed_of
from cfaug.decode.editors.backends import Edit, Traits
from cfaug.decode.text_image import TextImageModel
from cfaug.editor_config import GuideConfig
from cfaug.errors import UsageError


def model_of(guide: GuideConfig) -> TextImageModel | None:
    """The model that guides; None where none does."""
    return None if guide.clip is None else TextImageModel(guide.clip, "decoder.editor.guide.clip")


def check(guide: GuideConfig, traits: Traits, name: str, scheduler: str) -> None:
    """UsageError for a model that cannot be opened, and for a pipeline class or a scheduler that cannot be guided so."""
    model = model_of(guide)
    if model is None:
        return
    if not traits.draws:
        raise UsageError(
            f"decoder.editor.guide: expected a pipeline that draws another image under another seed, got {name}; set another backend, or remove the "
            "line"
        )
    if guide.scale and not name.startswith("StableDiffusion"):
        raise UsageError(
            f"decoder.editor.guide.scale: expected a class of Stable Diffusion, got {name}; set scale: 0 and draws: 4, which any class takes"
        )
    if guide.scale and scheduler != "DDIMScheduler":
        raise UsageError(
            f"decoder.editor.guide.scale: expected a DDIMScheduler, got {scheduler}; set decoder.editor.scheduler: DDIMScheduler"
        )
    model.check()


@contextmanager
def steered(pipe: Any, edits: Sequence[Edit], guide: GuideConfig) -> Iterator[None]:
    """While it lasts, each step of the pipeline's sampler is moved along the gradient of the score."""
    model = model_of(guide)
    if model is None or not guide.scale:
        yield
        return
    scheduler, step = pipe.scheduler, pipe.scheduler.step
    words = [edit.prompt for edit in edits], [edit.factual for edit in edits]
    sources = [np.array(edit.image) for edit in edits]  # transformers wants arrays that can be written
    whole = Image.new("L", edits[0].image.size, 255)
    with torch.inference_mode(False):
        before = torch.stack([to_tensor(edit.image) for edit in edits])
        region = torch.stack([to_tensor(edit.region or whole) for edit in edits])
        score = model.moves(sources, *words)

    @functools.wraps(step)
    def moved(noise: torch.Tensor, t: Any, sample: torch.Tensor, **more: Any) -> Any:
        made = step(noise, t, sample, **{**more, "return_dict": True})
        with torch.inference_mode(False), torch.enable_grad():
            clean = made.pred_original_sample.clone().detach().requires_grad_()
            images = (pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample / 2 + 0.5).float().cpu()
            images = region * images + (1 - region) * before  # as it is pasted
            (gradient,) = torch.autograd.grad(score(images).sum(), clean)
        earlier = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        alpha = scheduler.alphas_cumprod[earlier] if earlier >= 0 else scheduler.final_alpha_cumprod
        length = gradient.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-8)
        along = guide.scale * float(alpha) ** 0.5 * gradient[0].numel() ** 0.5 * gradient / length
        return (made.prev_sample + along.to(made.prev_sample),)

    scheduler.step = moved
    try:
        yield
    finally:
        del scheduler.step


def best_of(
    run: Callable[[Sequence[Edit]], list[Pixels]], edits: Sequence[Edit], sources: Sequence[Pixels], guide: GuideConfig
) -> list[Pixels]:
    """Of each edit the image, pasted into its source, that moved most as its words did; the first one, where there is one draw."""
    best = run(edits)
    model = model_of(guide)
    if model is None or guide.draws == 1:
        return best
    words = [edit.prompt for edit in edits], [edit.factual for edit in edits]
    scores = model.directions(best, sources, *words)
    for draw in range(1, guide.draws):
        made = run([dataclasses.replace(edit, seed=seed_of(edit.seed, 100 + draw)) for edit in edits])
        found = model.directions(made, sources, *words)
        best = [new if more else old for old, new, more in zip(best, made, found > scores)]
        scores = np.maximum(found, scores)
    return best
