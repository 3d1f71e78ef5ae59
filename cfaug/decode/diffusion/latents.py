r"""Latents: images through a diffusers autoencoder, standardised by what the training images measure.

.. math:: z = (E(x) - \mu) / \sigma, \qquad x \approx D(\mu + \sigma z),

with E the *mean* of the autoencoder's posterior (no draw: the same image gives the same latent) and :math:`\mu, \sigma` per
channel, measured on the training images. The ``scaling_factor`` in an autoencoder's own configuration is measured on
other people's images (Rombach et al., 2022, arXiv 2112.10752, section D.1): it is compared, never used.

Not promised: that D inverts E. Composition in latents is exact only up to the codec; ``roundtrip`` shows what the codec
alone does to an image, and no null intervention can come closer to its source than that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from cfaug.config import DecoderConfig
from cfaug.data.images import to_float
from cfaug.errors import UsageError, one_line

if TYPE_CHECKING:
    from cfaug.decode.diffusion.training import FitReport

log = logging.getLogger(__name__)

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
"""The diffusers classes that a directory may hold. Both take and give images in [-1, 1]."""

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_MEASURED = 2048  # training images that latent statistics come from: their error is then far below the scale itself
_JUDGED = 256  # of these, the images that are decoded again
_BATCH = 32
WORST_L1 = 0.1
"""Mean absolute error, in [0, 1], beyond which a codec does not show the image: uniform grey has about 0.25."""

_ADVICE = "name a local directory in decoder.autoencoder, or leave it empty to train one on the images"


def class_in(path: str | Path) -> str:
    """Which of ``AUTOENCODERS`` a directory says it holds; looks at names and ``config.json``, loads no weights.

    Raises:
        UsageError: no such directory or file, or another class.
    """
    path = Path(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            inside = "; its vae folder may be meant" if (path / "vae" / _CONFIG).is_file() else ""
            raise UsageError(f"expected an autoencoder of diffusers in {path}, but it has no {name}{inside}; {_ADVICE}")
    try:
        came = json.loads((path / _CONFIG).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        reason = one_line(error, 160)
        raise UsageError(f"expected a JSON object in {path / _CONFIG}, but {reason}; {_ADVICE}") from None
    if came not in AUTOENCODERS:
        raise UsageError(f"expected {' or '.join(AUTOENCODERS)} in {path}, but it holds {came!r:.80}; {_ADVICE}")
    return str(came)


class LatentSpace:
    """Standardised latents of a diffusers AutoencoderKL or AutoencoderTiny, in float32 whatever autocast surrounds it.

    Grey images (one channel) pass through a three-channel autoencoder repeated, and come back averaged.

    Args:
        autoencoder: the diffusers model.
        image_channels: C of the images, 1 or 3.
        device: where it runs; ``encode`` and ``decode`` expect their tensors there.

    Raises:
        UsageError: its channels do not fit, or its decoder does not give back the size its encoder took.
    """

    def __init__(self, autoencoder: Any, image_channels: int, device: str = "cpu") -> None:
        self.image_channels = one_or_three(image_channels)
        taken, given = autoencoder.config.in_channels, autoencoder.config.out_channels
        if taken != given or taken not in (self.image_channels, 3):
            raise UsageError(
                f"expected an autoencoder of {self.image_channels}-channel images, but this one takes {taken} channels and "
                f"gives {given}; name another in decoder.autoencoder, or leave it empty to train one on the images"
            )
        self._repeated = taken // self.image_channels
        self._autoencoder = autoencoder.to(device).float().eval().requires_grad_(False)
        self.channels = int(autoencoder.config.latent_channels)
        self.factor = _factor(autoencoder, taken, device)
        self._standardise(torch.zeros(self.channels), torch.ones(self.channels))
        self.l1 = float("nan")
        self.report: FitReport | None = None

    @classmethod
    def from_directory(cls, path: str | Path, image_channels: int, device: str = "cpu") -> LatentSpace:
        """A local diffusers directory: ``config.json`` and ``diffusion_pytorch_model.safetensors``; nothing is downloaded.

        The latents are not standardised before :meth:`measure`.

        Raises:
            UsageError: no such directory or file, another class, other channels, or weights that do not fit the class.
        """
        path, came = Path(path), class_in(path)
        try:
            autoencoder, info = _class(came).from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
            # diffusers fills what a file lacks with random numbers and only logs it
            absent = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
            if absent:
                raise ValueError(
                    f"its weights and its configuration differ in {len(absent)} tensors, first {absent[0]}"
                )
        except Exception as error:  # safetensors, diffusers and torch each have their own
            reason = one_line(error, 200)
            raise UsageError(f"expected {came} in {path}, but it cannot be loaded: {reason}; {_ADVICE}") from None
        return cls(autoencoder, image_channels, device)

    @classmethod
    def fit(
        cls,
        images: torch.Tensor,
        config: DecoderConfig,
        seed: int = 0,
        progress: bool = True,
        checkpoint: Path | None = None,
    ) -> LatentSpace:
        """Train a small AutoencoderKL on the images (see :mod:`cfaug.decode.codec`) and measure it.

        Args:
            images: uint8, shape (N, C, H, W).
            config: device, budget, batch size and learning rate.
            seed: of weights, batches and posterior draws.
            progress: show it.
            checkpoint: directory where training keeps its state.
        """
        from cfaug.decode.codec import train_autoencoder

        autoencoder, report = train_autoencoder(images, config, seed, progress, checkpoint)
        space = cls(autoencoder, images.shape[1], config.device).measure(images, trained_here=True)
        space.report = report
        return space

    @classmethod
    def restore(
        cls, description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], device: str = "cpu"
    ) -> LatentSpace:
        """What :meth:`description` and :meth:`weights` saved; any exception when they do not fit together."""
        if description["class"] not in AUTOENCODERS:
            raise ValueError(f"class {description['class']!r} is not one of {', '.join(AUTOENCODERS)}")
        autoencoder = _class(description["class"]).from_config(description["config"])
        autoencoder.load_state_dict(dict(weights))
        space = cls(autoencoder, int(description["image_channels"]), device)
        space._standardise(torch.tensor(description["mean"]), torch.tensor(description["std"]))
        space.l1 = float(description["l1"])
        return space

    def measure(self, images: torch.Tensor, trained_here: bool = False) -> LatentSpace:
        """Standardise by the latents of the training images, and check that the autoencoder suits them.

        Args:
            images: uint8, shape (N, C, H, W).
            trained_here: then a bad reconstruction is a warning (train longer), else an error.

        Raises:
            UsageError: mean reconstruction error above ``WORST_L1``; the message says if [0, 1] input would be right.
        """
        chosen = torch.linspace(0, len(images) - 1, min(_MEASURED, len(images))).round().long()
        latents = [self._encode(_float(images[part], self)) for part in torch.split(chosen, _BATCH)]
        flat = torch.cat([part.transpose(0, 1).flatten(1).double() for part in latents], dim=1)
        mean, std = flat.mean(1), flat.std(1, correction=0)
        spread = float(std.square().mean().sqrt())
        # a channel that hardly varies carries nothing: divided by its own spread it would be noise of unit size
        self._standardise(mean.float(), std.clamp_min(max(0.01 * spread, 1e-6)).float())
        judged = chosen[:: -(-len(chosen) // _JUDGED)]
        self.l1 = self._error(images[judged], lambda x: self.decode(self.encode(x)))
        if not self.l1 <= WORST_L1:  # NaN too
            self._refuse(images[judged], trained_here)
        stated = float(self._autoencoder.config.scaling_factor or 1.0)
        if not trained_here and not 0.5 <= stated * spread <= 2:
            log.warning(
                "the autoencoder states scaling_factor %.4g, but on the training images 1 / spread is %.4g; "
                "the measured mean and spread of each channel are used",
                stated,
                1 / max(spread, 1e-12),
            )
        return self

    def _refuse(self, images: torch.Tensor, trained_here: bool) -> None:
        came = f"mean absolute error {self.l1:.3f} of [0, 1] on the training images, expected at most {WORST_L1}"
        if trained_here:
            log.warning("the autoencoder trained here has %s; train longer, or use decoder.space: pixels", came)
            return
        of_zero_one = self._error(images, lambda x: self._decode(self._encode((x + 1) / 2)) * 2 - 1)
        if of_zero_one <= min(WORST_L1, self.l1 / 2):
            raise UsageError(
                f"wrong scaling of the latent autoencoder: {came}, but {of_zero_one:.3f} if it is shown [0, 1]; diffusers "
                "means [-1, 1]: convert its first and last layer, or name another in decoder.autoencoder"
            )
        raise UsageError(
            f"the autoencoder does not suit these images or has the wrong scaling: {came}; "
            "name another in decoder.autoencoder, or leave it empty to train one on the images"
        )

    def _error(self, images: torch.Tensor, codec: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Mean absolute error in [0, 1] of ``codec`` on uint8 images."""
        errors = []
        for part in torch.split(images, _BATCH):
            x = _float(part, self)
            errors.append((codec(x).clamp(-1, 1) - x).abs().flatten(1).mean(1) / 2)
        return float(torch.cat(errors).double().mean())

    def _standardise(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        device = next(self._autoencoder.parameters()).device
        if mean.shape != (self.channels,) or std.shape != mean.shape:
            raise ValueError(f"expected {self.channels} latent means and spreads, got {len(mean)} and {len(std)}")
        self._mean, self._std = (v.to(device, torch.float32).view(1, -1, 1, 1) for v in (mean, std))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] -> standardised (B, c, H / f, W / f). UsageError unless f divides H and W."""
        return (self._encode(image) - self._mean) / self._std

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Standardised (B, c, h, w) -> (B, C, h f, w f), not clamped."""
        return self._decode(latent * self._std + self._mean)

    @torch.no_grad()
    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        if image.ndim != 4 or image.shape[1] != self.image_channels or any(n % self.factor for n in image.shape[2:]):
            raise UsageError(
                f"expected images (B, {self.image_channels}, H, W) with H and W multiples of {self.factor}, but "
                f"{tuple(image.shape)} came; pad them first"
            )
        with torch.autocast(image.device.type, enabled=False):
            return _latent(self._autoencoder, image.float().repeat(1, self._repeated, 1, 1))

    @torch.no_grad()
    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            image: torch.Tensor = self._autoencoder.decode(latent.float()).sample
        return image.mean(1, keepdim=True) if self._repeated > 1 else image

    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of any size in [-1, 1], encoded and decoded: padding done and undone, clamped."""
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")
        return self.decode(self.encode(padded))[..., :height, :width].clamp(-1, 1)

    def description(self) -> dict[str, Any]:
        """Class, configuration, latent statistics and the measured reconstruction error."""
        # underscored entries are a version and the path that it was loaded from: runs are relocatable
        config = {name: value for name, value in self._autoencoder.config.items() if not name.startswith("_")}
        return {
            "kind": "latents",
            "class": type(self._autoencoder).__name__,
            "config": json.loads(json.dumps(config)),
            "image_channels": self.image_channels,
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "l1": self.l1,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The autoencoder's state, contiguous, on the CPU."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self._autoencoder.state_dict().items()}


def _class(name: str) -> Any:
    """The diffusers class of that name; only ever called with a member of ``AUTOENCODERS``."""
    import diffusers

    return getattr(diffusers, name)


def one_or_three(channels: int) -> int:
    if channels not in (1, 3):
        raise UsageError(f"expected images of 1 or 3 channels, but {channels!r} came; convert them to grey or RGB")
    return int(channels)


def _latent(autoencoder: Any, image: torch.Tensor) -> torch.Tensor:
    """The posterior's mean where there is a posterior (AutoencoderKL), the latent where there is none (AutoencoderTiny)."""
    encoded = autoencoder.encode(image)
    latent: torch.Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latent


@torch.no_grad()
def _factor(autoencoder: Any, channels: int, device: str) -> int:
    """f, by trying: down- and upsampling are described differently in each class, and may disagree."""
    side = 64
    latent = _latent(autoencoder, torch.zeros(1, channels, side, side, device=device))
    back = autoencoder.decode(latent).sample
    if side % latent.shape[-1] or latent.shape[-2] != latent.shape[-1] or back.shape[-2:] != (side, side):
        raise UsageError(
            f"expected an autoencoder whose decoder gives back {side}x{side} px for {side}x{side} px, but latents of "
            f"{tuple(latent.shape[-2:])} became {tuple(back.shape[-2:])}; name another in decoder.autoencoder"
        )
    return side // int(latent.shape[-1])


def _float(images: torch.Tensor, space: LatentSpace) -> torch.Tensor:
    """uint8 (B, C, H, W) -> [-1, 1] on the space's device, padded to its factor by replication."""
    padding = (0, -images.shape[-1] % space.factor, 0, -images.shape[-2] % space.factor)
    return F.pad(to_float(images).to(space._mean.device), padding, mode="replicate")
