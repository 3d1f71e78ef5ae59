"""The classifiers that the benchmark trains: a registry of small nets that take float images in [-1, 1].

``small_cnn`` opens with BatchNorm on the input channels and four 3x3 convolutions (32, 32, 64, 64), as the classifier
of Counterfactual Generative Networks (Sauer & Geiger 2021) does. Ours normalises after every convolution, reduces the
image to 4x4 and reads the positions, because an average over positions forgets where a stroke is.
Not promised: state-of-the-art accuracy. The same net serves every method of a table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cfaug.data.images import to_float
from cfaug.errors import UsageError, near

# torch initialises from one stream per process, which two threads that build nets at once would share
_INIT_LOCK = threading.Lock()


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


def _resnet18(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    from torchvision.models import resnet18

    net: nn.Module = resnet18(weights=None, num_classes=classes)
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return net


MODELS: dict[str, Callable[[int, tuple[int, int], int], nn.Module]] = {"small_cnn": SmallCNN, "resnet18": _resnet18}
"""name -> build(channels, (height, width), classes)."""


def build_model(name: str, channels: int, size: tuple[int, int], classes: int, seed: int = 0) -> nn.Module:
    """A freshly initialised net of MODELS; its weights depend on ``seed`` only and torch's own stream is not moved."""
    if name not in MODELS:
        raise UsageError(f"model: expected one of {', '.join(MODELS)}, got {name!r}; {near(name, MODELS)}")
    with _INIT_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](channels, size, classes).to(memory_format=torch.channels_last)


def as_input(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 -> float32 in [-1, 1]; float images are taken to be ready and keep their values.

    The result is channels_last: measured a tenth to a fifth faster in training, nearly twice as fast in prediction.
    """
    floats = to_float(images) if images.dtype == torch.uint8 else images.float()
    return floats.contiguous(memory_format=torch.channels_last)
