"""The settings of ``cfaug demo --photos DIR``: whatever the folder and the command line say, laid over the recipe demo_photos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cfaug.config import load_recipe
from cfaug.data.files import expand
from cfaug.data.sources.folder import METADATA, read_metadata
from cfaug.errors import UsageError, listed
from cfaug.recipe_file import dump_yaml

log = logging.getLogger(__name__)

PRETRAINED = (
    "--train.model=mobilenet_v2",
    "--train.mode=frozen",
    "--train.threads=2",
    "--data.size=128",
    "--gate.enabled=null",
)
"""What suits pretrained weights: linear heads, and photographs of the size at which the recipe photos_layered was measured."""


def photo_settings(recipe: Path, folder: str, given: Sequence[str]) -> list[str]:
    """Overrides of ``recipe`` for the photographs in ``folder``; what is ``given`` comes last and wins.

    UsageError where the columns of target, spurious attributes or masks cannot be told.
    """
    place = expand(folder)
    asked = load_recipe(recipe, given, labels_only=True)
    usual = load_recipe(recipe, labels_only=True)
    columns = [name for name in read_metadata(place).columns if name != "split"]
    target, spurious = asked.attributes.target, asked.attributes.spurious
    missing = [name for name in (target, *spurious) if name not in columns]
    if missing or not spurious:
        raise UsageError(
            f"{place / METADATA}: expected the columns {', '.join([target, *spurious]) or 'of target and scene'}, got {listed(columns, 8) or 'none'}; "
            "name yours with --attributes.target=COLUMN --attributes.spurious=[COLUMN]"
        )
    masks = asked.data.masks
    if masks and masks not in columns and not (place / masks).is_dir():
        raise UsageError(
            f"{place / METADATA}: expected a column {masks!r} with the files of masks, got {listed(columns, 8)}; name yours with --data.masks=COLUMN, "
            "or find the objects: --data.masks=null '--decoder.mask={from: grabcut}'"
        )
    found = [f"--data.root={place}"]
    if asked.attributes != usual.attributes:
        graph = [f"{target} <-> {name}; {name} -> image" for name in spurious]
        layers = dump_yaml({"background": spurious}, flow=True)
        found += [f"--graph={'; '.join([*graph, f'{target} -> image'])}", f"--decoder.layers={layers}"]
    if asked.train.weights:
        return [*found, *PRETRAINED, *given]
    log.info(
        "no --train.weights: a small net learns from these photographs alone, at a small size; pretrained weights are better"
    )
    return [*found, *given]
