"""The settings of a pretrained pipeline as image mechanism: the group ``decoder.editor`` of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from cfaug.errors import UsageError
from cfaug.recipe_file import Count, Finite, Flag, Number, settings

Backend = Literal["inversion", "image_to_image", "inpaint", "instruction", "ledits"]


@settings("decoder.editor.lora")
class LoraConfig:
    """Low-rank adapters (Hu et al., 2022) of the user's own images; ``steps: 0`` trains none."""

    steps: Number = 0  # optimiser steps on the training images, by `cfaug fit`
    rank: Annotated[Count, Field(le=256)] = 8  # of the adapters: how much they can learn
    batch_size: Count = 4  # images in a step
    learning_rate: Annotated[Finite, Field(ge=1e-9, le=1)] = 1e-4  # of its optimiser
    tokens: Flag = False  # one new token for each attribute value, learned with the adapters
    checkpoint_seconds: Annotated[Finite, Field(ge=0)] = 300.0  # how much training a kill can cost


@settings("decoder.editor.abduction")
class AbductionConfig:
    """Adapters of each single image before it is edited (doubly abductive, Song et al., 2024); ``steps: 0``: none. Minutes an image."""

    steps: Number = 0  # optimiser steps of the U-Net's adapter, by which the image's own prompt gives the image
    text_steps: Number = 0  # of the text encoder's, by which the new prompt gives it too; subtracted, it undoes that
    rank: Annotated[Count, Field(le=256)] = 16  # of both adapters
    learning_rate: Annotated[Finite, Field(ge=1e-9, le=1)] = 1e-4  # of their optimiser
    strength: Annotated[Finite, Field(ge=0, le=10)] = 1.0  # times which the text encoder's adapter is subtracted


@settings("decoder.editor.guide")
class GuideConfig:
    """Edits whose images move as their words do: the directional score (CF-CLIP, Yu et al., 2022) steers them, or chooses among draws."""

    clip: str | None = None  # a directory that transformers has saved a CLIP model in; it gives the score
    # how far each step of the sampler is moved along the score's gradient, of the latents' own size; Stable Diffusion with a DDIMScheduler
    scale: Annotated[Finite, Field(ge=0, le=10)] = 0.0
    draws: Count = 1  # of each edit, which takes as many times as long; the one that scores most is kept

    def __post_init__(self) -> None:
        """Raise UsageError for a guide without a model, and for a model that guides nothing."""
        if (self.draws > 1 or self.scale > 0) != (self.clip is not None):
            raise UsageError(
                f"decoder.editor.guide: expected clip, and a scale above 0 or at least 2 draws, got clip: {self.clip}, scale: {self.scale:g} and "
                f"draws: {self.draws}; set them or none"
            )


@settings("decoder.editor")
class EditorConfig:
    """A pipeline of diffusers that edits images by words (kind: pretrained). Nothing is downloaded, and no code of its directory is run."""

    # a directory that a pipeline was saved in, with safetensors; or the id of one in the hub's local cache, with its revision
    pipeline: str | None = None
    revision: str | None = None  # of a hub id: the 40 digits of a commit
    backend: Backend | None = None  # null: what the pipeline's class is for
    # words around the attributes: "a photo of a {species}, {background}"; null: the words of what is intervened on, alone
    template: str | None = None
    # attribute -> value, or range "30..60" -> words; a value's own name unless said
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    negative: str = ""  # what no image should show, where the pipeline takes that
    steps: Count = 30  # of the sampler
    guidance: Annotated[Finite, Field(ge=0, le=100)] | None = None  # towards the words; null: the pipeline's own
    # image_to_image, inpaint: how much of the image is drawn anew; 1 is all of it
    strength: Annotated[Finite, Field(gt=0, le=1)] = 0.8
    batch: Count = 1  # edits in one call, where the pipeline takes different images and prompts at once
    size: Count | None = None  # pixels of the short side at which it works; null: the working size
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of weights and images; half of the memory on a GPU
    scheduler: str | None = None  # a class of diffusers that suits the pipeline; null: its own
    offload: Literal["none", "model", "sequential"] = "none"  # of parts that are not at work to the CPU's memory
    slicing: Flag = False  # attention and autoencoder in slices: slower, less memory
    options: dict[str, JsonValue] = field(
        default_factory=dict
    )  # further arguments of the pipeline's call, by its names
    lora: LoraConfig = field(default_factory=LoraConfig)
    abduction: AbductionConfig = field(default_factory=AbductionConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)

    def __post_init__(self) -> None:
        """Raise UsageError for a strength of which no step is left."""
        if int(self.steps * self.strength) < 1:
            raise UsageError(
                f"decoder.editor.strength: expected at least 1 / steps, so that one step is taken, got {self.strength:g} of {self.steps} steps; "
                "raise one of them"
            )
