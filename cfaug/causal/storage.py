"""A fitted SCM on disk: scm.json and scm.safetensors. No pickle.

The digest covers the JSON and every array (name, type, shape, bytes); loading recomputes it, so that a file that
was cut, edited or mixed with another's is refused and never half believed. It promises integrity, not authenticity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data.files import replace_file
from cfaug.errors import ShardError

FORMAT = 2
Arrays = Mapping[str, npt.NDArray[Any]]


def digest(data: Mapping[str, Any], arrays: Arrays) -> str:
    """sha256 (hex) of the canonical JSON and of every array in order of its name."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    h = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        a = np.asarray(arrays[name], order="C")
        h.update(f"\n{name} {a.dtype.str} {a.shape}\n".encode() + a.tobytes())
    return h.hexdigest()


def save(directory: Path, data: Mapping[str, Any], arrays: Arrays) -> None:
    """Write both files, each complete or not at all."""
    from safetensors.numpy import save as pack

    directory.mkdir(parents=True, exist_ok=True)
    whole = {"format": FORMAT, "digest": digest(data, arrays), **data}
    packed = {k: np.asarray(v, order="C") for k, v in arrays.items()}  # ascontiguousarray would make () into (1,)
    replace_file(directory / "scm.safetensors", pack(packed))
    replace_file(directory / "scm.json", (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())


def load(directory: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """(JSON, arrays) as they were saved; ShardError for anything else."""
    path = directory / "scm.json"
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        form, expected = data.pop("format", None), data.pop("digest", None)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: not found; expected a model directory written by save()") from error
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: corrupt ({' '.join(str(error).split())[:120]}); fit the model again") from error
    if form != FORMAT:
        raise ShardError(f"{path}: expected SCM format {FORMAT}, got {form!r}; fit the model again")
    arrays: dict[str, npt.NDArray[Any]] = {}
    packed = directory / "scm.safetensors"
    if packed.is_file():
        from safetensors import SafetensorError
        from safetensors.numpy import load as unpack

        try:
            arrays = dict(unpack(packed.read_bytes()))
        except (SafetensorError, OSError, ValueError) as error:
            raise ShardError(
                f"{packed}: corrupt ({' '.join(str(error).split())[:120]}); fit the model again"
            ) from error
    came = digest(data, arrays)
    if came != expected:
        raise ShardError(f"{path}: expected digest {str(expected)[:12]}, got {came[:12]}; fit the model again")
    return data, arrays
