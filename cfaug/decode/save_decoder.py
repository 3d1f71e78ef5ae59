"""Trained mechanisms on disk: ``decoder.json`` (description, digest, report of the training) and ``decoder.safetensors``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cfaug.data.files import expand, replace_file
from cfaug.decode.mechanism import FitReport
from cfaug.errors import ShardError, UsageError, one_line

FORMAT = 3
_ADVICE = "train it again with `cfaug fit RECIPE.yaml --out DIR --overwrite`"


def digest(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over the description and every weight."""
    content = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def save(
    directory: str | Path, description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], report: FitReport | None
) -> None:
    """Write both files, the description last."""
    from safetensors.torch import save as serialise

    directory = expand(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace_file(directory / "decoder.safetensors", serialise(weights))
    content = {
        **description,
        "digest": digest(description, weights),
        "training": dataclasses.asdict(report) if report else None,
    }
    replace_file(directory / "decoder.json", json.dumps(content, indent=1, sort_keys=True).encode())


def kind_of(directory: str | Path) -> str:
    """The kind of the decoder that is saved in ``directory``; ShardError where ``decoder.json`` cannot be read."""
    try:
        content = json.loads((expand(directory) / "decoder.json").read_text(encoding="utf-8"))
        return str(content.get("kind"))
    except (OSError, ValueError, AttributeError) as error:
        raise corrupt(directory, error) from None


def load(directory: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], FitReport | None]:
    """(description, weights on the CPU, report), checked against the digest.

    Raises:
        ShardError: a missing, truncated or altered file.
        UsageError: a decoder that a different version of cfaug has saved.
    """
    from safetensors.torch import load_file

    directory = expand(directory)
    try:
        content = json.loads((directory / "decoder.json").read_text(encoding="utf-8"))
        expected, training, version = str(content.pop("digest")), content.pop("training"), content["format"]
        report = FitReport(**training) if training else None
        weights = load_file(directory / "decoder.safetensors", device="cpu")
        found = digest(content, weights)
    except Exception as error:  # JSON, safetensors and torch each raise their own
        raise corrupt(directory, error) from None
    if found != expected:
        raise corrupt(directory, f"digest {found[:12]} instead of {expected[:12]}")
    if version != FORMAT:
        raise UsageError(f"{directory}: expected a decoder of format {FORMAT}, got format {version}; {_ADVICE}")
    return content, weights, report


def corrupt(directory: str | Path, reason: object) -> ShardError:
    """The one line for a saved decoder that cannot be read."""
    return ShardError(
        f"corrupt checkpoint in {directory}: expected decoder.json and decoder.safetensors as saved, "
        f"got {one_line(reason, 160)}; {_ADVICE}"
    )
