"""The settings of the image mechanism: the group ``decoder`` of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue, Strict

from cfaug.editor_config import EditorConfig
from cfaug.errors import UsageError
from cfaug.recipe_file import Count, Finite, Flag, Number, Share, settings

Sampler = Literal["reversible", "reversible_euler", "midpoint"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
NO_AUTOENCODER = (
    "decoder.space is latents, but decoder.autoencoder names no directory, and training one here was removed; name a local "
    "directory of diffusers in decoder.autoencoder, or write space: pixels"
)

Kind = Literal["diffusion", "layered", "functional", "pretrained", "composed", "imported"]
Partner = Literal["cover", "light", "random"]
Width = Annotated[int, Strict(), Field(ge=8, multiple_of=8)]


@settings("decoder.composite")
class CompositeConfig:
    """How layers are put together (kind: layered)."""

    bank: Count = 500  # training images, at most, that lend a layer for each combination of its values
    # of the candidates drawn for a source: cover (the donor's hole is hidden best by the source's object), light (nearest mean), random
    partner: Partner = "cover"
    partners: Annotated[Count, Field(le=1000)] = (
        16  # candidates; more cover better and repeat the same donors more often
    )
    fill: Literal["telea", "nearest", "texture"] = "telea"  # of the donor's hole; texture: a patch from beside it
    margin: Annotated[Number, Field(le=50)] = (
        2  # pixels around a donor's object that are filled too: masks are rarely wide enough
    )
    feather: Annotated[Finite, Field(ge=0, le=50)] = 0.0  # pixels over which a hard mask fades inwards
    # of the foreground: transfer (its colours shifted to the donor's) | surface (the donor's surface in its outline) | diffusion (a
    # decoder, with the settings above, that is trained on objects alone)
    redraw: Literal["transfer", "surface", "diffusion"] = "transfer"


@settings("decoder")
class DecoderConfig:
    """The image mechanism. ``seconds: null`` scales the budget with the data."""

    # diffusion (trained) | layered (regions) | functional (closed form) | pretrained (a pipeline that edits by words) | composed (one for each
    # attribute) | imported (edited elsewhere)
    kind: Kind = "diffusion"
    # layered, pretrained: which attribute lives where: {background: [place], foreground: [colour]}
    layers: dict[str, list[str]] = field(default_factory=dict)
    # layered: where the object's mask comes from: {from: given | grabcut | onnx | attribution | threshold, ...}
    mask: dict[str, JsonValue] = field(default_factory=lambda: {"from": "given"})
    composite: CompositeConfig = field(default_factory=CompositeConfig)
    # functional: attribute -> value -> what shows it: {marker: {marker: {stamp: L.png}, plain: {remove: marker}}}
    functions: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    # composed: attribute -> its mechanism: {place: layered, marker: functional, colour: diffusion}
    mechanisms: dict[str, Literal["diffusion", "layered", "functional", "pretrained"]] = field(default_factory=dict)
    editor: EditorConfig = field(default_factory=EditorConfig)  # pretrained
    # what the network sees: pixels | latents (of a variational autoencoder, for photographs)
    space: Literal["pixels", "latents"] = "pixels"
    autoencoder: str | None = None  # latents: a local directory of a diffusers autoencoder
    # held fixed beside the noise; layout or gradient where attributes recolour, moving no edge
    structure: Literal["layout", "gradient", "none"] = "none"
    # space-to-depth factor; null: 1 up to 8 px, 2 up to 16 px, 4 beyond
    patch: Annotated[Count, Field(le=64)] | None = None
    # of the U-Net, one entry for each resolution
    channels: Annotated[list[Width], Field(min_length=1)] = field(default_factory=lambda: [64, 96])
    # training budget; null: at most 3 minutes at 2 000 images, 25 at 20 000
    seconds: Annotated[Finite, Field(ge=0.1)] | None = None
    max_steps: Count | None = None  # a fixed number of steps makes training reproducible; null: by seconds
    batch_size: Count = 128  # images in a step of training
    learning_rate: Annotated[Finite, Field(ge=1e-9, le=10)] = 2e-3  # peak; it falls to the end of the budget
    # each attribute block is hidden independently (decoupled guidance needs it)
    drop_attribute: Annotated[Finite, Field(ge=0, le=0.9)] = 0.1
    cell_power: Share = 0.5  # an image weighs count(cell) ** -cell_power: rare attribute combinations count
    validate_every: Count | None = None  # optimiser steps between two counterfactual validation scores; null: no scores
    patience: Count = 3  # scores without improvement before training stops early
    checkpoint_seconds: Annotated[Finite, Field(ge=0)] = 60.0  # how much training a kill can cost; resuming is exact
    sampler: Sampler = "reversible"  # reversible (a null intervention returns the image) | midpoint
    # solver steps each way: reversible 4 network evaluations each, midpoint 2, reversible_euler 2
    steps: Annotated[Count, Field(le=1000)] = 3
    # attribute: flow time to invert to, in (0, 1]; 1 unless said
    depth: dict[str, Annotated[Finite, Field(ge=1e-3, le=1)]] = field(default_factory=dict)
    # strength of the intervention: scales the intervened attributes only; the rest stays at 1
    guidance: Annotated[Finite, Field(ge=0, le=100)] = 1.0
    device: str = "cpu"  # cpu | cuda | mps, or cuda:1
    bf16: Flag = True  # autocast to bfloat16 where the device computes convolutions in it (CPU: AVX-512); else float32
    compile: Flag = False  # torch.compile the network in training

    def __post_init__(self) -> None:
        """Raise UsageError for settings that cannot act together."""
        for name, depth in self.depth.items():
            if depth < 1 and self.steps == 1:
                raise UsageError(
                    f"decoder.depth of {name} is {depth:g}, but decoder.steps is 1, so there is no time-step to stop at; take more "
                    "steps or remove the depth"
                )
        if self.drop_attribute == 0 and self.guidance != 1:
            raise UsageError(
                f"decoder.guidance is {self.guidance:g}, but decoder.drop_attribute is 0, so the decoder never learns an image "
                "without the attribute; set drop_attribute to 0.1 or guidance to 1"
            )
