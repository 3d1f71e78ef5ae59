"""The classifiers of a run, kept so that ``cfaug audit`` can ask them: ``classifiers/METHOD-SEED.safetensors``.

Of a frozen net only the last layer is kept, with the digest of the net under it; a net that is trained whole is kept where it is small.
The file's metadata say how to build it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cfaug.stages.run import Run

PLACE = "classifiers"
SMALL = 10_000_000
"""Bytes of a net that is kept unless the recipe says otherwise."""


def keep_classifier(
    run: Run, method: str, seed: int, tensors: Mapping[str, Tensor], backbone: str | None = None
) -> None:
    """Write one classifier, if the recipe wants it; ``backbone``: digest of the frozen net of which ``tensors`` are the last layer."""
    from safetensors.torch import save

    keep = run.recipe.train.keep
    size = sum(value.nbytes for value in tensors.values())
    if not run.leads or keep is False or (keep is None and size > SMALL):
        return
    about = {
        "method": method,
        "seed": seed,
        "backbone": backbone,
        "classes": list(run.inputs.schema[run.inputs.target].categories),
    }
    content = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"cfaug": json.dumps(about)}
    )
    (run.out / PLACE).mkdir(exist_ok=True)
    run.directory.write(f"{PLACE}/{method}-{seed}.safetensors", content)


def kept_classifiers(run: Path) -> list[Path]:
    """The files of a run's classifiers, by method and seed."""
    return sorted((run / PLACE).glob("*.safetensors"))


def about_classifier(path: Path) -> dict[str, Any] | None:
    """What the file of a kept classifier says of itself; None for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            told = (opened.metadata() or {}).get("cfaug")
    except (OSError, SafetensorError):
        return None
    found: dict[str, Any] | None = None if told is None else json.loads(told)
    return found
