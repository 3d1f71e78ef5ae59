"""Image mechanisms, and the model that joins one to an SCM. The only room that imports diffusers."""

from __future__ import annotations

from cfaug.decode.diffusion.decoder import DiffusionDecoder, ImageNoise
from cfaug.decode.model import ActedModel, CounterfactualModel, Decoder, ModelNoise, load_decoder

__all__ = [
    "ActedModel",
    "CounterfactualModel",
    "Decoder",
    "DiffusionDecoder",
    "ImageNoise",
    "ModelNoise",
    "load_decoder",
]
