"""Image mechanisms, and the model that joins one to an SCM. The only room that imports diffusers.

mechanism       the protocol of every decoder, and its capabilities as data
diffusion/      the default: a conditional flow-matching U-Net, trained on the user's images
model           CounterfactualModel: SCM and decoder with the three verbs; loading by kind
storage         a decoder's two files on disk
"""

from __future__ import annotations

from cfaug.decode.diffusion.decoder import DiffusionDecoder, ImageNoise
from cfaug.decode.mechanism import Capabilities, FitReport, ImageMechanism
from cfaug.decode.model import ActedModel, CounterfactualModel, ModelNoise, load_decoder

__all__ = [
    "ActedModel",
    "Capabilities",
    "CounterfactualModel",
    "DiffusionDecoder",
    "FitReport",
    "ImageMechanism",
    "ImageNoise",
    "ModelNoise",
    "load_decoder",
]
