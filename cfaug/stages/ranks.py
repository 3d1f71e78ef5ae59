"""One plan, several processes or places: what a rank has to know of itself, and where a run's shards are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cfaug.config import Recipe, load_recipe
from cfaug.errors import UsageError
from cfaug.offline import Plan, make_engine
from cfaug.offline.commit import open_destination
from cfaug.offline.engines.ranks import RankEngine, local_rank
from cfaug.offline.format import PLAN_HEADER

SHARED = ("torchrun", "slurm")
"""Engines that a launcher starts from outside, one process a rank; the others are started by ``cfaug generate`` itself."""


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


def missing_shards(out: str | Path, plan: Plan) -> list[str]:
    """Names of the plan's shards that are not committed at ``out``."""
    return [plan.shard_name(number) for number in plan.missing(open_destination(out).committed())]


def recorded_destination(directory: str | Path) -> str | None:
    """The destination in the ``config.yaml`` of the run in `directory`; None where there is no such run or it has none."""
    config = Path(directory) / "config.yaml"
    try:
        return load_recipe(config).generate.destination if config.exists() else None
    except UsageError:  # of another version, or nobody's: whoever opens the directory says so
        return None


def shards_of(directory: str) -> str:
    """Where the shards of a run are: its ``generate.destination`` where it has one, else `directory` itself."""
    return directory if "://" in directory else recorded_destination(directory) or directory


def plan_of(directory: str) -> Plan | None:
    """The plan of the run in `directory`, if it has one."""
    place = Path(directory) / "plan"
    return Plan.load(place) if (place / PLAN_HEADER).exists() else None
