r"""The space that the network works in: pixels, or the standardised latents of a diffusers autoencoder.

.. math:: z = (E(x) - \mu) / \sigma, \qquad x \approx D(\mu + \sigma z),

with E the *mean* of the autoencoder's posterior (no draw: the same image gives the same latent) and :math:`\mu, \sigma` per
channel, measured on the training images. The ``scaling_factor`` in an autoencoder's own configuration is measured on
different images (Rombach et al., 2022, arXiv 2112.10752, section D.1) and is not used.

Not promised: that D inverts E. In latents no null intervention can come closer to its source than the autoencoder does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from cfaug.config import DecoderConfig
from cfaug.data.files import expand
from cfaug.data.images import to_float
from cfaug.errors import UsageError, one_line, shown

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
"""The diffusers classes that a directory may hold. Both take and give images in [-1, 1]."""

WORST_L1 = 0.1
"""Mean absolute error, in [0, 1], beyond which an autoencoder does not show the image: uniform grey has about 0.25."""

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_MEASURED = 2048  # training images that latent statistics come from: their error is then far below the scale itself
_BATCH = 32
_ADVICE = "name the local directory of a diffusers AutoencoderKL in decoder.autoencoder, or set decoder.space=pixels"


def open_space(images: torch.Tensor, config: DecoderConfig) -> Space:
    """The space that ``config.space`` and ``config.autoencoder`` ask for, measured on the images, uint8 (N, C, H, W).

    Raises:
        UsageError: no directory of an autoencoder for these images, or it cannot reconstruct them.
    """
    if config.space == "pixels":
        return PixelSpace(images.shape[1])
    space = LatentSpace(_loaded(config.autoencoder), images.shape[1], config.device)
    space.measure(images)
    return space


def restore_space(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], device: str = "cpu") -> Space:
    """The space of a saved ``description()`` and ``weights()``; any exception when they do not fit together."""
    channels = int(description["image_channels"])
    if description["kind"] == "pixels":
        return PixelSpace(channels)
    if description["class"] not in AUTOENCODERS:
        raise ValueError(f"class {description['class']!r}, not one of {', '.join(AUTOENCODERS)}")
    autoencoder = _class(description["class"]).from_config(description["config"])
    autoencoder.load_state_dict(dict(weights))
    space = LatentSpace(autoencoder, channels, device)
    space.standardise(torch.tensor(description["mean"]), torch.tensor(description["std"]))
    return space


def autoencoder_class(path: str | None) -> str:
    """Which of ``AUTOENCODERS`` a directory holds, by its file names and ``config.json``; no weights are loaded.

    Raises:
        UsageError: no directory is named, or it lacks a file, or it holds a different class.
    """
    if not path:
        raise UsageError(f"expected a directory in decoder.autoencoder for decoder.space latents, got none; {_ADVICE}")
    place = expand(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (place / name).is_file():
            inside = " (its vae folder may be meant)" if (place / "vae" / _CONFIG).is_file() else ""
            raise UsageError(f"expected an autoencoder of diffusers in {path}, but it has no {name}{inside}; {_ADVICE}")
    try:
        found = json.loads((place / _CONFIG).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"expected a JSON object in {place / _CONFIG}, got {one_line(error, 160)}; {_ADVICE}"
        ) from None
    if found not in AUTOENCODERS:
        raise UsageError(f"expected {' or '.join(AUTOENCODERS)} in {path}, got {shown(found)}; {_ADVICE}")
    return str(found)


class PixelSpace:
    """The identity: the network sees pixels. UsageError unless ``image_channels`` is 1 or 3."""

    factor = 1

    def __init__(self, image_channels: int) -> None:
        self.channels = _one_or_three(image_channels)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The image itself, (B, C, H, W)."""
        return image

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The image itself, (B, C, H, W)."""
        return latent

    def description(self) -> dict[str, Any]:
        """Kind and channels."""
        return {"kind": "pixels", "image_channels": self.channels}

    def weights(self) -> dict[str, torch.Tensor]:
        """Pixels have no weights."""
        return {}


class LatentSpace:
    """Standardised latents of a diffusers autoencoder, in float32 even where autocast surrounds it.

    Grey images (one channel) pass through a three-channel autoencoder repeated, and come back averaged.

    Args:
        autoencoder: the diffusers model.
        image_channels: C of the images, 1 or 3.
        device: where it runs; ``encode`` and ``decode`` expect their tensors there.

    Attributes:
        channels: c, of the latents.
        factor: f, image pixels per latent pixel in each direction.

    Raises:
        UsageError: its channels do not fit, or its decoder does not give back the size that its encoder took.
    """

    def __init__(self, autoencoder: Any, image_channels: int, device: str = "cpu") -> None:
        self.image_channels = _one_or_three(image_channels)
        taken, given = autoencoder.config.in_channels, autoencoder.config.out_channels
        if taken != given or taken not in (self.image_channels, 3):
            raise UsageError(
                f"expected an autoencoder of {self.image_channels}-channel images, got one that takes {taken} channels and "
                f"gives {given}; {_ADVICE}"
            )
        self._repeated = taken // self.image_channels
        self._autoencoder = autoencoder.to(device).float().eval().requires_grad_(False)
        self.channels = int(autoencoder.config.latent_channels)
        self.standardise(torch.zeros(self.channels), torch.ones(self.channels))
        side = 64  # by trying: each class describes its down- and upsampling differently, and the two may disagree
        latent = self._encode(torch.zeros(1, self.image_channels, side, side, device=device))
        back, inside = self._decode(latent).shape[-2:], latent.shape[-2:]
        if side % inside[1] or inside[0] != inside[1] or back != (side, side):
            raise UsageError(
                f"expected an autoencoder that gives back {side}x{side} px for {side}x{side} px, got {tuple(back)} from latents "
                f"of {tuple(inside)}; {_ADVICE}"
            )
        self.factor = side // int(inside[1])

    def measure(self, images: torch.Tensor) -> None:
        """Standardise by the latents of the training images, uint8 (N, C, H, W), and check that the autoencoder suits them.

        Raises:
            UsageError: mean reconstruction error above ``WORST_L1``.
        """
        chosen = torch.linspace(0, len(images) - 1, min(_MEASURED, len(images))).round().long()
        latents: list[torch.Tensor] = []
        errors: list[torch.Tensor] = []
        for part in torch.split(chosen, _BATCH):
            padding = (0, -images.shape[3] % self.factor, 0, -images.shape[2] % self.factor)
            x = F.pad(to_float(images[part]).to(self._mean.device), padding, mode="replicate")
            latents.append(self._encode(x).transpose(0, 1).flatten(1).double())
            if len(errors) < 8:  # 256 images are enough to judge it
                errors.append((self._decode(self._encode(x)).clamp(-1, 1) - x).abs().mean() / 2)
        flat = torch.cat(latents, dim=1)
        mean, std = flat.mean(1), flat.std(1, correction=0)
        l1 = float(torch.stack(errors).mean())
        if not l1 <= WORST_L1:  # NaN too
            raise UsageError(
                f"expected an autoencoder that reconstructs the training images with a mean absolute error of at most {WORST_L1} "
                f"of [0, 1], got {l1:.3f} (the scale of its input may be wrong: diffusers means [-1, 1]); {_ADVICE}"
            )
        # a channel that hardly varies carries nothing: divided by its own spread it would be noise of unit size
        spread = float(std.square().mean().sqrt())
        self.standardise(mean.float(), std.clamp_min(max(0.01 * spread, 1e-6)).float())

    def standardise(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the mean and the spread of each latent channel, shape (c,)."""
        device = next(self._autoencoder.parameters()).device
        if mean.shape != (self.channels,) or std.shape != mean.shape:
            raise ValueError(f"{len(mean)} latent means and {len(std)} spreads instead of {self.channels}")
        self._mean, self._std = (v.to(device, torch.float32).view(1, -1, 1, 1) for v in (mean, std))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1], H and W multiples of f -> standardised (B, c, H / f, W / f)."""
        return (self._encode(image) - self._mean) / self._std

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Standardised (B, c, h, w) -> (B, C, h f, w f), not clamped."""
        return self._decode(latent * self._std + self._mean)

    @torch.no_grad()
    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            encoded = self._autoencoder.encode(image.float().repeat(1, self._repeated, 1, 1))
        # AutoencoderTiny has no posterior
        latent: torch.Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latent

    @torch.no_grad()
    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            image: torch.Tensor = self._autoencoder.decode(latent.float()).sample
        return image.mean(1, keepdim=True) if self._repeated > 1 else image

    def description(self) -> dict[str, Any]:
        """Class, configuration and latent statistics, for JSON."""
        # underscored entries are a version and the path that it was loaded from: runs are relocatable
        config = {name: value for name, value in self._autoencoder.config.items() if not name.startswith("_")}
        return {
            "kind": "latents",
            "class": type(self._autoencoder).__name__,
            "config": json.loads(json.dumps(config)),
            "image_channels": self.image_channels,
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The autoencoder's state."""
        return dict(self._autoencoder.state_dict())


Space = PixelSpace | LatentSpace


def _loaded(path: str | None) -> Any:
    """The autoencoder of a local diffusers directory; nothing is downloaded."""
    name = autoencoder_class(path or "")
    try:
        autoencoder, info = _class(name).from_pretrained(
            expand(path or ""), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True,
            torch_dtype=torch.float32,
        )  # fmt: skip
        # diffusers fills what a file lacks with random numbers and only logs it
        absent = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if absent:
            raise ValueError(f"weights and configuration that differ in {len(absent)} tensors, first {absent[0]}")
    except Exception as error:  # safetensors, diffusers and torch each raise their own
        raise UsageError(f"expected {name} in {path}, got {one_line(error, 200)}; {_ADVICE}") from None
    return autoencoder


def _class(name: str) -> Any:
    """The diffusers class of that name; only ever called with a member of ``AUTOENCODERS``."""
    import diffusers

    return getattr(diffusers, name)


def _one_or_three(channels: int) -> int:
    if channels not in (1, 3):
        raise UsageError(f"expected images of 1 or 3 channels, got {channels!r}; convert them to grey or RGB")
    return channels
