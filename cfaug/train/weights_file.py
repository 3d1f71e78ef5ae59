"""Pretrained weights from a local file, into a net of the same architecture. Nothing is unpickled but tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfaug.data.files import expand
from cfaug.errors import UsageError, listed, one_line

INSIDE = ("state_dict", "model", "model_state_dict")
"""Under what a training script's checkpoint has the weights."""


def load_weights(net: nn.Module, path: str, name: str) -> None:
    """Load ``path``, a safetensors file or a state dict as ``torch.save`` writes it, into ``net``.

    A last layer for a different number of classes is left out, because ours is trained anew. Prefixes of DataParallel are taken away.

    Raises:
        UsageError: no such file, not weights (a pickled object is refused unread), or the weights of a different architecture.
    """
    place = expand(path)
    if not place.is_file():
        raise UsageError(
            f"train.weights: expected a file, got {path!r}, which does not exist; correct the path, or write torchvision"
        )
    found = _read(place)
    found = {key.removeprefix("module."): value for key, value in found.items()}
    own = net.state_dict()
    last = [path for path, part in net.named_modules() if isinstance(part, nn.Linear)][-1:]
    free = {f"{path}.{part}" for path in last for part in ("weight", "bias")}
    missing = [key for key in own if key not in found and key not in free and not key.endswith("num_batches_tracked")]
    unlike = [key for key in own if key in found and own[key].shape != found[key].shape and key not in free]
    unknown = [key for key in found if key not in own]
    if missing or unlike or (unknown and len(unknown) > len(own) // 10):
        wrong = (
            f"lacks {len(missing)} of {len(own)} tensors ({listed(missing, 2)})" if missing else
            f"has {len(unlike)} tensors of a different shape ({listed(unlike, 2)})" if unlike else f"has {len(unknown)} more ({listed(unknown, 2)})"
        )  # fmt: skip
        raise UsageError(
            f"train.weights: expected weights of {name}, but {place.name} {wrong}; give the file of this architecture, or correct train.model"
        )
    net.load_state_dict({k: v for k, v in found.items() if k in own and own[k].shape == v.shape}, strict=False)


def _read(place: Any) -> Mapping[str, Tensor]:
    try:
        if place.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: Mapping[str, Tensor] = load_file(place)
            return weights
        content = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors have each their own
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise UsageError(
                f"train.weights: expected a state dict, got {place.name}, a pickle that may run code, which is not read; save "
                "net.state_dict() as safetensors"
            ) from None
        raise UsageError(
            f"train.weights: expected weights, but {place.name} cannot be read ({one_line(error, 120)}); download it again"
        ) from None
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(
            f"train.weights: expected a mapping of names to tensors in {place.name}, got {type(content).__name__}; save net.state_dict()"
        )
    return content
