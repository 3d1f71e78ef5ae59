"""What people copy: the recipes and the training loops that come with the package."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from cfaug.errors import UsageError

LOOPS = "loops"  # recipes/loops: training loops with and without cfaug, a folder of programs
NOT_COPIED = shutil.ignore_patterns("__pycache__", "ruff.toml")


def shipped_recipes() -> dict[str, Path]:
    """Name to path of the recipes that came with the package."""
    folder = resources.files("cfaug.recipes")
    return {
        entry.name.removesuffix(".yaml"): Path(str(entry))
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".yaml")
    }


def shipped_names() -> list[str]:
    """Everything that :func:`copy_shipped` copies."""
    return [*shipped_recipes(), LOOPS]


def copy_shipped(name: str | None) -> Path:
    """Copy a recipe to ``NAME.yaml``, or the loops to ``loops/``, in the working directory; where it went.

    UsageError for a name that is not shipped, and where something stands already.
    """
    if name not in shipped_names():
        raise UsageError(
            f"expected one of the shipped recipes {', '.join(shipped_names())}, but {name or 'no name'} came; write `cfaug recipes cp demo`"
        )
    target = Path(LOOPS if name == LOOPS else f"{name}.yaml")
    if target.exists():
        raise UsageError(f"{target} exists already and is not overwritten; move it away first")
    if name == LOOPS:
        with resources.as_file(resources.files("cfaug.recipes") / LOOPS) as folder:
            shutil.copytree(folder, target, ignore=NOT_COPIED)
    else:
        shutil.copyfile(shipped_recipes()[name], target)
    return target
