"""Image mechanisms: the diffusion decoder, its distilled student, and the model that joins one to an SCM. The only room that
imports diffusers."""

from __future__ import annotations

from cfaug.decode.diffusion import DiffusionDecoder, ImageNoise
from cfaug.decode.distilled import CarriedImage, DistilledDecoder
from cfaug.decode.model import ActedModel, CounterfactualModel, Decoder, ModelNoise, load_decoder

__all__ = [
    "ActedModel",
    "CarriedImage",
    "CounterfactualModel",
    "Decoder",
    "DiffusionDecoder",
    "DistilledDecoder",
    "ImageNoise",
    "ModelNoise",
    "load_decoder",
]
