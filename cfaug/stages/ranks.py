"""Several processes generate one plan: the rank and the device of each."""

from __future__ import annotations

import dataclasses

from cfaug.config import Recipe
from cfaug.offline import make_engine
from cfaug.offline.engines.ranks import RankEngine, local_rank

SHARED = ("torchrun", "slurm")
"""Engines that a launcher starts from outside, one process per rank; ``cfaug generate`` itself starts all other engines."""


def rank_of(engine: str) -> int:
    """The rank of this process, by the engine's environment variables; UsageError where they are missing."""
    found = make_engine(engine, 0)
    return found.rank if isinstance(found, RankEngine) else 0


def with_own_device(recipe: Recipe) -> Recipe:
    """``cuda`` without a number becomes this process's own graphics card, of those that it sees."""
    import torch

    decoder, cards = recipe.decoder, torch.cuda.device_count()
    if decoder.device != "cuda" or not cards:
        return recipe
    # the remainder: where the launcher binds one card to each task, every process sees a single one
    device = f"cuda:{local_rank() % cards}"
    return dataclasses.replace(recipe, decoder=dataclasses.replace(decoder, device=device))
