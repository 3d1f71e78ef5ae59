"""What this installation has, and whether a recipe's inputs are fit for a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from cfaug.config import load_recipe
from cfaug.data.files import expand
from cfaug.stages.decoder_advice import advise_decoder
from cfaug.stages.near_duplicates import duplicates_in_run
from cfaug.stages.recipe_checks import check_recipe
from cfaug.stages.run_directory import versions


def examine(place: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Versions and machine; with ``place``, a recipe or the directory of a run, its inputs too.

    Raises:
        CfaugError: what `cfaug run` would refuse.
    """
    content: dict[str, Any] = {
        "versions": versions(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "free disk (GB)": round(shutil.disk_usage(".").free / 1e9, 1),
    }
    if place:
        run = expand(place)
        recipe = load_recipe(run / "config.yaml" if run.is_dir() else place, overrides)
        inputs = check_recipe(recipe)
        content["recipe"] = {split: len(getattr(inputs, split)) for split in ("train", "val", "test")}
        content |= {
            f"decoder for {line.split(':')[0]}": line.partition(": ")[2] for line in advise_decoder(recipe, inputs)
        }
        if run.is_dir() and (notes := duplicates_in_run(recipe, inputs, run)):
            content["near-duplicates"] = " ".join(notes)
    return content
