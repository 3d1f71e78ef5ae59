"""What a teacher shows its student: training images under drawn attributes, and the counterfactuals that the teacher makes.

    pa' = the factual attributes, every one but the target drawn anew (and a quarter of them left as they are)

A categorical attribute is drawn uniformly over the values that occur in the data, so that rare combinations are as frequent as
the others (the plan's strategy ``balance`` asks for the same); a continuous one is another row's. The teacher is asked once and
for all; what it answered is kept beside the training's checkpoint, in parts, so that a kill costs one part.

Not promised: interventions on the target. A student has seen none (unless the target is the image's only parent).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from cfaug.data import Schema
from cfaug.data.files import replace_file
from cfaug.decode import processes
from cfaug.decode.condition import differing
from cfaug.errors import CfaugError

if TYPE_CHECKING:
    from cfaug.decode.diffusion import DiffusionDecoder

log = logging.getLogger(__name__)

_KEPT = 0.25  # of the drawn attributes keep their value: interventions on one attribute alone must be seen, too
_BATCH = 64
_PART = 16  # batches a file: some ten seconds of a teacher at 32 px on two cores


def drawn(table: pd.DataFrame, schema: Schema, parents: Collection[str], seed: int) -> pd.DataFrame:
    """Counterfactual attributes for every row.

    Args:
        table: N rows of factual values; some may be missing.
        schema: names the target, which stays as it is.
        parents: of the image; other columns stay, too.
        seed: of the draw.

    Returns:
        A copy of ``table`` with drawn values.
    """
    generator = np.random.default_rng([seed, 0xD157])
    result = table.copy()
    for name in [name for name in parents if name != schema.target] or list(parents):
        known = table[name].dropna()
        if known.empty:
            continue
        pool = known if schema[name].kind == "continuous" else known.drop_duplicates().sort_values()
        chosen = pool.iloc[generator.integers(0, len(pool), len(table))].to_numpy()
        keep = generator.random(len(table)) < _KEPT
        result[name] = pd.Series(chosen, index=table.index).where(~keep, table[name])
    return result


def taught(
    teacher: DiffusionDecoder,
    images: torch.Tensor,
    factual: pd.DataFrame,
    counterfactual: pd.DataFrame,
    progress: bool,
    checkpoint: Path | None,
) -> torch.Tensor:
    """The teacher's counterfactuals of ``images``.

    Args:
        teacher: a fitted decoder.
        images: uint8 (N, C, H, W).
        factual: N rows.
        counterfactual: N rows.
        progress: show it.
        checkpoint: directory that keeps what has been made already; None: nothing is kept.

    Returns:
        uint8 (N, C, H, W), quantised as the shards are. Several processes share the work, and all get everything.

    Raises:
        CfaugError: the teacher makes pixels that are no numbers.
    """
    rank, world = processes.join(teacher.config.device)
    key = _key(teacher, images, factual, counterfactual) if checkpoint else ""
    result = torch.zeros_like(images)
    size = _BATCH * _PART
    parts = list(range(0, len(images), size))[rank::world]
    for start in tqdm(parts, desc="teacher", unit="part", disable=not progress or rank > 0):
        rows = slice(start, start + size)
        path = checkpoint / f"pairs-{start // size:05d}.safetensors" if checkpoint else None
        found = _kept(path, key) if path else None
        if found is None:
            found = _asked(teacher, images[rows], factual.iloc[rows], counterfactual.iloc[rows])
            if path and processes.primary():
                _keep(path, key, found)
        result[rows] = found
    return processes.total(result, teacher.config.device)


def forget(checkpoint: Path) -> None:
    """Delete what :func:`taught` kept in ``checkpoint``."""
    for path in checkpoint.glob("pairs-*.safetensors"):
        path.unlink()


def _asked(
    teacher: DiffusionDecoder, images: torch.Tensor, factual: pd.DataFrame, counterfactual: pd.DataFrame
) -> torch.Tensor:
    made = []
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        noise = teacher.abduct(images[rows].float() / 127.5 - 1, factual.iloc[rows])
        affected = differing(factual.iloc[rows], counterfactual.iloc[rows], teacher.parents)
        image = teacher.predict(noise, counterfactual.iloc[rows], affected)
        if not bool(torch.isfinite(image).all()):
            raise CfaugError(
                "the teacher makes pixels that are no numbers, so there is nothing to distil; fit it again with a lower "
                "decoder.learning_rate"
            )
        made.append(((image.float() + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(made)


def _key(teacher: DiffusionDecoder, images: torch.Tensor, factual: pd.DataFrame, counterfactual: pd.DataFrame) -> str:
    content = hashlib.sha256(teacher.digest.encode())
    for table in (factual, counterfactual):
        content.update(table.to_csv().encode())
    content.update(images.contiguous().numpy().data)
    return content.hexdigest()


def _kept(path: Path, key: str) -> torch.Tensor | None:
    """What an earlier run has left, or None where there is nothing, or something else."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("images") if file.metadata()["key"] == key else None
    except Exception as error:  # damaged: asking the teacher again costs time and loses nothing
        log.warning("cannot read %s (%s); asking the teacher again", path, " ".join(str(error).split()))
        return None


def _keep(path: Path, key: str, images: torch.Tensor) -> None:
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save({"images": images.contiguous()}, {"key": key}))
    except OSError as error:
        raise CfaugError(
            f"the teacher's counterfactuals cannot be written to {path.parent} ({error.strerror}); free space or make it "
            "writable, then run the same command again"
        ) from None
