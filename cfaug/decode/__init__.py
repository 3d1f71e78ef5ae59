"""Image mechanisms: the diffusion decoder, and the model that joins it to an SCM. The only room that imports diffusers."""

from __future__ import annotations

from cfaug.decode.diffusion import DiffusionDecoder, ImageNoise
from cfaug.decode.model import ActedModel, CounterfactualModel, ModelNoise

__all__ = ["ActedModel", "CounterfactualModel", "DiffusionDecoder", "ImageNoise", "ModelNoise"]
