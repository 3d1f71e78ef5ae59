"""Space: what the decoder's network works on. Pixels, or the latents of an autoencoder for images of 64 px and more.

    space = open_space(images, config)                   # uint8 training images: trained, or loaded and measured
    latent = space.encode(x); x = space.decode(latent)   # x in [-1, 1]; latents of about unit range

A space is saved as ``description()`` (JSON) and ``weights()`` (safetensors), and read by :func:`restore`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from cfaug.config import DecoderConfig
from cfaug.data.files import replace_file
from cfaug.decode.diffusion.latents import WORST_L1, LatentSpace, one_or_three
from cfaug.errors import ShardError, one_line

__all__ = ["WORST_L1", "LatentSpace", "PixelSpace", "Space", "forget", "open_space", "restore"]

log = logging.getLogger(__name__)

_FINISHED = "autoencoder.safetensors"
_FREE = ("device", "compile", "checkpoint_seconds", "steps", "sampler", "guidance", "depth")  # do not shape the latents


@runtime_checkable
class Space(Protocol):
    """A codec between images and the tensors that the network sees.

    Attributes:
        image_channels: C, 1 or 3.
        channels: c, of the working tensor.
        factor: f, image pixels a working pixel in each direction; 1 for pixels.
    """

    image_channels: int
    channels: int
    factor: int

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, c, H / f, W / f) of about unit range; H and W are multiples of f."""
        ...

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) -> (B, C, h f, w f); about [-1, 1], not clamped."""
        ...

    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """What the codec alone makes of images (B, C, H, W) of any size, in [-1, 1]: the floor of composition."""
        ...

    def description(self) -> dict[str, Any]:
        """Everything but the weights, for JSON; the same on every machine."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Float32 tensors on the CPU, for safetensors; empty for pixels."""
        ...


def open_space(
    images: torch.Tensor, config: DecoderConfig, seed: int = 0, progress: bool = True, checkpoint: Path | None = None
) -> Space:
    """The space that ``config.space`` and ``config.autoencoder`` ask for, ready to use.

    Args:
        images: the training images, uint8, shape (N, C, H, W).
        config: ``space``, ``autoencoder``, ``device``, and the budget when an autoencoder is trained.
        seed: of that training.
        progress: show it.
        checkpoint: directory where that training keeps its state and then its result, until :func:`forget`; when the
            decoder's own training is killed and resumed, it then goes on in the very same latents.

    Raises:
        UsageError: the directory does not hold an autoencoder for these images, or it cannot reconstruct them.
    """
    if config.space == "pixels":
        return PixelSpace(images.shape[1])
    if config.autoencoder is None:
        return _fitted(images, config, seed, progress, checkpoint)
    return LatentSpace.from_directory(config.autoencoder, images.shape[1], config.device).measure(images)


def restore(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], device: str = "cpu") -> Space:
    """The space of a saved ``description()`` and ``weights()``. ShardError when they do not fit together."""
    try:
        if description["kind"] == "pixels":
            return PixelSpace(int(description["image_channels"]))
        return LatentSpace.restore(description, weights, device)
    except Exception as error:  # torch, diffusers and Python each have their own
        reason = one_line(error, 160)
        raise ShardError(
            f"corrupt checkpoint: expected the description and weights of a space as saved, but {type(error).__name__}: "
            f"{reason}; run `cfaug fit` again with --overwrite"
        ) from None


def forget(checkpoint: Path) -> None:
    """Delete what :func:`open_space` keeps in ``checkpoint``, for when the space is saved elsewhere."""
    from cfaug.decode.diffusion import training

    (checkpoint / _FINISHED).unlink(missing_ok=True)
    training.forget(checkpoint)


def _fitted(
    images: torch.Tensor, config: DecoderConfig, seed: int, progress: bool, checkpoint: Path | None
) -> LatentSpace:
    """A space trained here, or the one that the same training has left in ``checkpoint``."""
    from safetensors import safe_open
    from safetensors.torch import save

    from cfaug.decode.diffusion import distributed as processes
    from cfaug.decode.diffusion.training import FitReport

    if checkpoint is None:
        return LatentSpace.fit(images, config, seed, progress)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
    content = hashlib.sha256(json.dumps([settings, seed, list(images.shape)]).encode())
    content.update(images.contiguous().numpy().data)
    path, key = checkpoint / _FINISHED, content.hexdigest()
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata()
                if said["key"] == key:
                    weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                    space = LatentSpace.restore(json.loads(said["description"]), weights, config.device)
                    space.report = FitReport(**json.loads(said["report"]))
                    return space
        except Exception as error:  # damaged: training it again costs time and loses nothing
            log.warning("cannot read %s (%s); training the autoencoder again", path, one_line(error))
    space = LatentSpace.fit(images, config, seed, progress, checkpoint)
    if processes.primary():
        texts = {"key": key, "description": json.dumps(space.description())}
        texts["report"] = json.dumps(dataclasses.asdict(space.report)) if space.report else "{}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(space.weights(), texts))
    return space


class PixelSpace:
    """The identity: the network sees pixels. UsageError unless ``image_channels`` is 1 or 3."""

    factor = 1

    def __init__(self, image_channels: int) -> None:
        self.image_channels = self.channels = one_or_three(image_channels)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The image itself, (B, C, H, W)."""
        return image

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The image itself, (B, C, H, W)."""
        return latent

    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """The image itself."""
        return image

    def description(self) -> dict[str, Any]:
        """Kind and channels."""
        return {"kind": "pixels", "image_channels": self.image_channels}

    def weights(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}
