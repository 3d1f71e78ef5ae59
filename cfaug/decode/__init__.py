"""Image mechanisms, and the model that joins one to an SCM. The only room that imports diffusers.

mechanism       the protocol of every decoder, and its capabilities as data
diffusion/      a conditional flow-matching U-Net, trained on the user's images
layered/        an object over a background: the layer of another training image takes the place of one
editors/        pretrained pipelines of diffusers, asked in words
functional/     closed-form functions: stamps, frames, transforms
imported        images that were edited elsewhere
pixel_mechanism what layers, functions and imported images have in common
composed        several mechanisms, each for its own attributes
model           CounterfactualModel: SCM and decoder with the three verbs; loading by kind
save_decoder    a decoder's two files on disk
"""

from __future__ import annotations

from cfaug.decode.composed import ComposedDecoder, Part
from cfaug.decode.diffusion.decoder import DiffusionDecoder, ImageNoise
from cfaug.decode.editors.decoder import PretrainedDecoder
from cfaug.decode.functional.decoder import FunctionalDecoder
from cfaug.decode.imported import EditedFile, ImportedDecoder
from cfaug.decode.layered.decoder import LayeredDecoder
from cfaug.decode.layered.masked import MaskedDataset
from cfaug.decode.mechanism import Capabilities, FitReport, ImageMechanism
from cfaug.decode.model import ActedModel, CounterfactualModel, ModelNoise, load_decoder

__all__ = [
    "ActedModel",
    "Capabilities",
    "ComposedDecoder",
    "CounterfactualModel",
    "DiffusionDecoder",
    "EditedFile",
    "FitReport",
    "FunctionalDecoder",
    "ImageMechanism",
    "ImageNoise",
    "ImportedDecoder",
    "LayeredDecoder",
    "MaskedDataset",
    "ModelNoise",
    "Part",
    "PretrainedDecoder",
    "load_decoder",
]
