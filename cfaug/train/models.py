"""The classifiers that are trained: a small net of our own, every classifier of torchvision, and timm's where that is installed.

All take float images (B, C, H, W) in [-1, 1] and give logits; :class:`Classifier` brings them to what pretrained weights expect.

    z = ((x + 1) / 2 - mean) / std        imagenet: the mean and std of torchvision's weights; lite: (pixels - 127) / 128

``small_cnn`` opens with BatchNorm on the input channels and four 3x3 convolutions (32, 32, 64, 64), as the classifier
of Counterfactual Generative Networks (Sauer & Geiger 2021) does. Ours normalises after every convolution, reduces the
image to 4x4 and reads the positions, because an average over positions forgets where a stroke is.
Not promised: state-of-the-art accuracy. The same net serves every method of a table.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cfaug.data.images import to_float
from cfaug.errors import UsageError, near, one_line, shown
from cfaug.train.weights_file import load_weights

log = logging.getLogger(__name__)

# torch initialises from one stream per process, which two threads that build nets at once would share
_INIT_LOCK = threading.Lock()

SMALL = "small_cnn"
TIMM = "timm:"
DOWNLOADED = "torchvision"
"""What ``weights`` says for torchvision's own, which are downloaded."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
NORMALIZATIONS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5,) * 3, (0.5,) * 3),  # [-1, 1]
    "unit": ((0.0,) * 3, (1.0,) * 3),  # [0, 1]
    "lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}
"""Name -> mean and standard deviation of the three channels, in [0, 1]."""


def _block(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


class SmallCNN(nn.Module):
    """Logits (B, classes) of images (B, channels, H, W) in [-1, 1]; H and W at least 4, fixed at construction."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        smaller = min(size)
        if smaller < 4:
            raise UsageError(f"small_cnn expected images of at least 4x4 pixels, got {size[0]}x{size[1]}; enlarge them")
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        # halve until the last stage sees at most 8x8: a stride in the first convolutions is what makes 32x32 cheap
        large = max(0, (smaller // 8).bit_length() - 1)
        layers += _block(channels, width, 2 if large >= 1 else 1)
        layers += _block(width, width)
        for _ in range(max(0, large - 1)):
            layers += _block(width, width, 2)
        layers += [nn.MaxPool2d(2)] if smaller >= 8 else []
        layers += _block(width, 2 * width)
        layers += _block(2 * width, 2 * width)
        layers += [nn.AdaptiveAvgPool2d(4)] if smaller % 8 or size[0] != size[1] or smaller > 8 else []
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(2 * width * 16, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """What goes into the last layer: (B, D)."""
        embedded: Tensor = self.features(images).flatten(1)
        return embedded

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        return self.head[1]  # type: ignore[return-value]


class Classifier(nn.Module):
    """A net without its last layer, the normalisation in front of it, and a last layer of our own.

    Images (B, 1 or 3, H, W) in [-1, 1], grey ones shown as R = G = B -> logits (B, classes).
    """

    def __init__(self, net: nn.Module, last: nn.Linear, statistics: Statistics) -> None:
        super().__init__()
        self.net, self.last = net, last
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in statistics)
        # of x in [-1, 1]
        self.register_buffer("shift", 2 * mean - 1, persistent=False)
        self.register_buffer("scale", 2 * std, persistent=False)

    def embed(self, images: Tensor) -> Tensor:
        """What goes into the last layer: (B, D)."""
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        made = self.net((images - self.shift) / self.scale)  # type: ignore[operator]
        made = made if isinstance(made, Tensor) else made[0]  # with auxiliary heads, in training
        return made.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.embed(images))
        return logits


@cache
def model_names() -> tuple[str, ...]:
    """small_cnn and every classifier of torchvision."""
    import torchvision

    return (SMALL, *torchvision.models.list_models(module=torchvision.models))


def check_model(name: str) -> None:
    """UsageError unless there is a model of that name (one of timm needs the package)."""
    if name.startswith(TIMM):
        _timm(name)
    elif name not in model_names():
        raise UsageError(
            f"train.model: expected small_cnn, a classifier of torchvision.models or timm:NAME, got {name!r}; {near(name, model_names())}"
        )


def build_model(
    name: str,
    channels: int,
    size: tuple[int, int],
    classes: int,
    seed: int = 0,
    weights: str | None = None,
    normalization: str | Mapping[str, Sequence[float]] | None = None,
) -> SmallCNN | Classifier:
    """A net of that name; what is not read from ``weights`` is initialised from ``seed`` alone, and torch's own stream is not moved.

    ``weights``: see :func:`cfaug.train.weights_file.load_weights`; ``torchvision``: its own, downloaded. ``normalization``: a name in
    NORMALIZATIONS, or {mean, std} of values in [0, 1]; None: what the weights expect, [-1, 1] without weights.

    Raises:
        UsageError: an unknown model or normalisation, weights that do not fit, images that are too small for the net.
    """
    check_model(name)
    with _INIT_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == SMALL:
            if weights is not None or normalization is not None:
                raise UsageError(
                    "train.model small_cnn is trained from scratch on images in [-1, 1]; remove train.weights and train.normalization, or "
                    "name a classifier of torchvision"
                )
            return SmallCNN(channels, size, classes).to(memory_format=torch.channels_last)
        net = (
            _timm(name).create_model(name.removeprefix(TIMM), pretrained=False)
            if name.startswith(TIMM)
            else _torchvision(name)
        )
        if weights == DOWNLOADED:
            _download(name, net)
        elif weights is not None:
            load_weights(net, weights, name)
        path, last = _last_linear(net, name)
        statistics = _statistics(normalization, name, weights is not None, net)
        net.set_submodule(path, nn.Identity())
        model = Classifier(net, nn.Linear(last.in_features, classes), statistics)
    _refuse_size(model, name, size)
    return model.to(memory_format=torch.channels_last)


def digest_of(model: nn.Module) -> str:
    """sha256 (hex) of what the features of a model depend on: its kind, every weight but the last layer's, the normalisation."""
    found = hashlib.sha256(type(getattr(model, "net", model)).__name__.encode())
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    for name in sorted(tensors):
        if not name.startswith("last."):
            value = tensors[name].detach().cpu().contiguous()
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def as_input(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 -> float32 in [-1, 1]; float images, and features (B, D), are taken to be ready and keep their values.

    Images come out as channels_last: measured a tenth to a fifth faster in training, nearly twice as fast in prediction.
    """
    floats = to_float(images) if images.dtype == torch.uint8 else images.float()
    return floats.contiguous(memory_format=torch.channels_last) if floats.ndim == 4 else floats


def _torchvision(name: str) -> nn.Module:
    import torchvision

    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net: nn.Module = torchvision.models.get_model(name, weights=None, **more)
    return net


def _timm(name: str) -> Any:
    try:
        import timm  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsageError(f'train.model {name} needs the package timm: pip install "cfaug[timm]"') from None
    if not timm.is_model(name.removeprefix(TIMM)):
        raise UsageError(
            f"train.model: expected a model of timm, got {name!r}; {near(name.removeprefix(TIMM), timm.list_models())}"
        )
    return timm


def _download(name: str, net: nn.Module) -> None:
    import torchvision

    if name.startswith(TIMM):
        raise UsageError(f"train.weights: torchvision has no weights of {name}; give a local file")
    try:
        net.load_state_dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False))
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"train.weights: torchvision's weights of {name} cannot be downloaded ({one_line(error, 120)}); download them elsewhere and give the file"
        ) from None


def _last_linear(net: nn.Module, name: str) -> tuple[str, nn.Linear]:
    found = [(path, part) for path, part in net.named_modules() if isinstance(part, nn.Linear)]
    if not found or found[-1][1].out_features < 2:
        raise UsageError(
            f"train.model: expected a net whose last layer is linear, got {name}, which has none; take a different one"
        )
    return found[-1]


def _statistics(
    given: str | Mapping[str, Sequence[float]] | None, name: str, pretrained: bool, net: nn.Module
) -> Statistics:
    if isinstance(given, Mapping):
        mean, std = tuple(given.get("mean", ())), tuple(given.get("std", ()))
        if set(given) != {"mean", "std"} or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(
                f"train.normalization: expected mean and std of three channels, std above 0, got {shown(dict(given))}; write for example "
                "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
            )
        return mean, std
    if given is not None:
        if given not in NORMALIZATIONS:
            raise UsageError(
                f"train.normalization: expected one of {', '.join(NORMALIZATIONS)}, or mean and std, got {given!r}; {near(given, NORMALIZATIONS)}"
            )
        return NORMALIZATIONS[given]
    if not pretrained:
        return NORMALIZATIONS["symmetric"]
    if name.startswith(TIMM):
        told = getattr(net, "default_cfg", None) or {}
        if "mean" not in told or "std" not in told:
            raise UsageError(
                f"train.normalization: timm does not say what the weights of {name} expect; write imagenet, symmetric, unit or mean and std"
            )
        return tuple(told["mean"]), tuple(told["std"])
    import torchvision

    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)


def _refuse_size(model: Classifier, name: str, size: tuple[int, int]) -> None:
    """UsageError for images that the net cannot take, found out with one black image."""
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, *size))
    except (RuntimeError, ValueError, AssertionError) as error:
        least = ""
        if not name.startswith(TIMM):
            import torchvision

            height, width = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
            least = f", at least {width}x{height}"
        raise UsageError(
            f"train.model {name}: expected images of a size that it takes{least}, got {size[1]}x{size[0]} ({one_line(error, 80)}); set data.size"
        ) from None
    finally:
        model.train(was)
