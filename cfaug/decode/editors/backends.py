"""Pipeline classes that can edit, what each of them can do, and how it is called.

What the code asks is in the table :data:`CLASSES`, as diffusers 0.42 has it: which classes take several different images and prompts in
one call, which take a mask, a strength or a negative prompt, and in which argument the guidance goes. An edit is one source, one prompt,
one region and one seed, whatever shares a call with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cfaug.editor_config import EditorConfig

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Traits:
    """What a pipeline class can do.

    Attributes:
        backend: one of :data:`cfaug.editor_config.Backend`.
        batches: takes several images, each with its prompt and its seed, in one call.
        mask: draws inside a region alone.
        draws: another seed makes another image.
        guidance: the argument that guidance goes in.
        listed: takes the source as a list of one image.
        multiple: sides must be multiples of this, whatever the autoencoder takes.
        least: the smallest side that it takes, in pixels.
        packed: latents are packed two by two, so that sides are multiples of twice the autoencoder's factor.
        fixed: arguments that are always passed.
    """

    backend: str
    batches: bool = True
    mask: bool = False
    draws: bool = True
    guidance: str = "guidance_scale"
    listed: bool = False
    multiple: int = 1
    least: int = 1
    packed: bool = False
    fixed: tuple[tuple[str, Any], ...] = ()


CLASSES: dict[str, Traits] = {
    "StableDiffusionPipeline": Traits("inversion", draws=False, multiple=8),
    "StableDiffusionXLPipeline": Traits("inversion", draws=False, multiple=8),
    "StableDiffusionImg2ImgPipeline": Traits("image_to_image"),
    "StableDiffusionXLImg2ImgPipeline": Traits("image_to_image"),
    "StableDiffusionInpaintPipeline": Traits("inpaint", mask=True, multiple=8),
    "StableDiffusionXLInpaintPipeline": Traits("inpaint", mask=True, multiple=8),
    "Flux2KleinInpaintPipeline": Traits("inpaint", mask=True, packed=True),
    "StableDiffusionInstructPix2PixPipeline": Traits("instruction"),
    "Flux2KleinPipeline": Traits("instruction", batches=False, listed=True, least=64, packed=True),  # a list is references for one prompt
    "FluxKontextPipeline": Traits("instruction", packed=True, fixed=(("_auto_resize", False),)),  # or the source grows to a megapixel
    "QwenImageEditPipeline": Traits("instruction", guidance="true_cfg_scale", packed=True),
    "QwenImageEditPlusPipeline": Traits("instruction", batches=False, guidance="true_cfg_scale", listed=True, packed=True),
    "LEditsPPPipelineStableDiffusion": Traits("ledits", batches=False, guidance="edit_guidance_scale", multiple=32),
    "LEditsPPPipelineStableDiffusionXL": Traits("ledits", batches=False, guidance="edit_guidance_scale", multiple=32),
}  # fmt: skip
"""Pipeline class -> what it can do."""

INTO: dict[tuple[str, str], str] = {
    ("StableDiffusionPipeline", "image_to_image"): "StableDiffusionImg2ImgPipeline",
    ("StableDiffusionXLPipeline", "image_to_image"): "StableDiffusionXLImg2ImgPipeline",
    ("StableDiffusionPipeline", "inpaint"): "StableDiffusionInpaintPipeline",
    ("StableDiffusionXLPipeline", "inpaint"): "StableDiffusionXLInpaintPipeline",
    ("StableDiffusionPipeline", "ledits"): "LEditsPPPipelineStableDiffusion",
    ("StableDiffusionXLPipeline", "ledits"): "LEditsPPPipelineStableDiffusionXL",
    ("Flux2KleinPipeline", "inpaint"): "Flux2KleinInpaintPipeline",
}
"""A saved class and another backend -> the class that has the same parts."""


@dataclass(frozen=True)
class Edit:
    """One edit: RGB source, region (white is drawn anew; None: everywhere), prompt, prompt of the source as it is, seed."""

    image: Image.Image
    region: Image.Image | None
    prompt: str
    factual: str
    seed: int


def run(pipe: Any, traits: Traits, edits: Sequence[Edit], config: EditorConfig) -> Floats:
    """The edited images (N, H, W, 3) in [0, 1], of the sources' size, by one call of the pipeline."""
    made = _CALLS.get(traits.backend, _plainly)(pipe, traits, edits, config)
    return np.asarray(made, dtype=np.float32)


def _plainly(pipe: Any, traits: Traits, edits: Sequence[Edit], config: EditorConfig) -> Any:
    first, single = edits[0], not traits.batches
    images = [edit.image for edit in edits]
    given: dict[str, Any] = {
        "prompt": first.prompt if single else [edit.prompt for edit in edits],
        "image": images if traits.listed or not single else images[0],
        "generator": _generators(edits, single),
        "height": first.image.height,
        "width": first.image.width,
        "strength": config.strength,
        "max_area": first.image.height * first.image.width,
    }
    if traits.mask:
        regions = [edit.region or Image.new("L", edit.image.size, 255) for edit in edits]
        given["mask_image"] = regions[0] if single else regions
    return _call(pipe, traits, config, len(edits), given)


def _inverted(pipe: Any, traits: Traits, edits: Sequence[Edit], config: EditorConfig) -> Any:
    """DDIM inversion (Song et al., 2021) under the factual prompt, then sampling under the new one from the noise that was found."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    latents = latents_of(pipe, [edit.image for edit in edits])
    settings = {**pipe.scheduler.config, "clip_sample": False, "timestep_spacing": "leading"}
    given = {"height": edits[0].image.height, "width": edits[0].image.width}
    with _scheduler(pipe, DDIMInverseScheduler.from_config(settings)):
        there = pipe(
            prompt=[edit.factual for edit in edits], latents=latents, num_inference_steps=config.steps, guidance_scale=1.0,
            output_type="latent", **given,
        ).images  # fmt: skip
    with _scheduler(pipe, DDIMScheduler.from_config(settings)):
        prompts = [edit.prompt for edit in edits]
        return _call(pipe, traits, config, len(edits), {**given, "prompt": prompts, "latents": there})


def _ledits(pipe: Any, traits: Traits, edits: Sequence[Edit], config: EditorConfig) -> Any:
    """Edit-friendly inversion of one image, then guidance towards the words (Brack et al., 2024)."""
    (edit,) = edits
    generator = _generators(edits, True)
    size = {"height": edit.image.height, "width": edit.image.width}
    pipe.invert(image=edit.image, num_inversion_steps=config.steps, generator=generator, **size)
    return _call(pipe, traits, config, 1, {"editing_prompt": [edit.prompt], "generator": generator})


_CALLS: dict[str, Callable[[Any, Traits, Sequence[Edit], EditorConfig], Any]] = {
    "inversion": _inverted,
    "ledits": _ledits,
}


def _call(pipe: Any, traits: Traits, config: EditorConfig, n: int, given: dict[str, Any]) -> Any:
    """Call the pipeline with those of the arguments that it has."""
    taken = inspect.signature(pipe.__call__).parameters
    every = {
        **given, **dict(traits.fixed), **config.options, "num_inference_steps": config.steps, "output_type": "np",
        traits.guidance: config.guidance,
    }  # fmt: skip
    negative = config.negative or (" " if traits.guidance == "true_cfg_scale" else "")  # which does nothing without one
    if negative:
        every["negative_prompt"] = negative if isinstance(every.get("prompt"), str) else [negative] * n
    return pipe(**{name: value for name, value in every.items() if name in taken and value is not None}).images


def _generators(edits: Sequence[Edit], single: bool) -> Any:
    """On the CPU, whatever computes: a seed then means the same noise everywhere."""
    found = [torch.Generator().manual_seed(edit.seed) for edit in edits]
    return found[0] if single else found


@contextmanager
def _scheduler(pipe: Any, scheduler: Any) -> Any:
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def latents_of(pipe: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images as the latents (B, c, h, w) that a Stable Diffusion U-Net works on."""
    pixels = pipe.image_processor.preprocess(list(images)).to(pipe.device, pipe.vae.dtype)
    found: torch.Tensor = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    return found


def round_trip(pipe: Any, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] through the autoencoder and back."""
    vae = pipe.vae
    pixels = images.to(pipe._execution_device, vae.dtype)
    video = type(vae).__name__ == "AutoencoderKLQwenImage"  # its images are films of one frame
    latents = vae.encode(pixels[:, :, None] if video else pixels).latent_dist.mode()
    back: torch.Tensor = vae.decode(latents).sample
    return (back[:, :, 0] if video else back).float().clamp(-1, 1).cpu()
