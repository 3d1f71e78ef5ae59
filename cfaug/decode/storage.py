"""Image mechanisms on disk: ``decoder.json`` (description, digest, report of the training) and ``decoder.safetensors``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cfaug.data.files import replace_file
from cfaug.decode.diffusion.training import FitReport
from cfaug.errors import ShardError, UsageError, one_line

FORMAT = 2
ADVICE = "train it again with `cfaug fit RECIPE.yaml --out DIR --overwrite`"


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

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace_file(directory / "decoder.safetensors", serialise(weights))
    content = {
        **description,
        "digest": digest(description, weights),
        "training": dataclasses.asdict(report) if report else None,
    }
    replace_file(directory / "decoder.json", json.dumps(content, indent=1, sort_keys=True).encode())


def load(directory: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], FitReport | None]:
    """(description, weights on the CPU, report), checked against the digest.

    Raises:
        ShardError: a missing, truncated or altered checkpoint.
        UsageError: a checkpoint of an older version of cfaug.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    try:
        content = json.loads((directory / "decoder.json").read_text(encoding="utf-8"))
        expected, training = str(content.pop("digest")), content.pop("training")
        report = FitReport(**training) if training else None
        found_format = content["format"]
        weights = load_file(directory / "decoder.safetensors", device="cpu")
        found = digest(content, weights)
    except Exception as error:  # JSON, safetensors and torch each have their own
        raise corrupt(directory, error) from None
    if found != expected:
        raise ShardError(
            f"corrupt checkpoint in {directory}: expected digest {expected[:12]}, but {found[:12]} came; {ADVICE}"
        )
    if found_format != FORMAT:
        raise UsageError(
            f"{directory}: expected a decoder of format {FORMAT}, but format {found_format} came; {ADVICE}"
        )
    return content, weights, report


def corrupt(directory: str | Path, error: Exception) -> ShardError:
    """The one line for a checkpoint that cannot be read."""
    reason = one_line(error, 160)
    return ShardError(
        f"corrupt checkpoint in {directory}: expected decoder.json and decoder.safetensors as saved, but {reason}; {ADVICE}"
    )
