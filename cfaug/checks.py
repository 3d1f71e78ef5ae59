"""What a recipe may say: closed registries of names, ranges of numbers, and combinations that cannot work."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from cfaug.errors import UsageError, near

if TYPE_CHECKING:
    from cfaug.config import DecoderConfig, Recipe

DECODERS = ("diffusion",)
SPACES = ("pixels", "latents")
SAMPLERS = ("reversible", "reversible_euler", "midpoint")
STRUCTURES = ("layout", "gradient", "none")
DISCOVERIES = ("pc", "fci", "ges")
STRATEGIES = ("balance", "uniform", "every_value", "flip", "counterfactual_pairs")
ENGINES = ("local", "torchrun", "slurm", "submitit", "ray")
IMAGES = ("png", "png-stored", "webp")

_ANY = (0.0, math.inf)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": _ANY, "data.seed": _ANY, "data.train_images": (1, math.inf), "data.val_images": (1, math.inf),
    "discover.alpha": (1e-12, 0.5), "discover.bootstraps": _ANY,
    "decoder.patch": (1, 64), "decoder.seconds": (0.1, math.inf), "decoder.max_steps": (1, math.inf),
    "decoder.batch_size": (1, math.inf), "decoder.learning_rate": (1e-9, 10), "decoder.drop_attribute": (0, 0.9),
    "decoder.cell_power": (0, 1), "decoder.steps": (1, 1000), "decoder.validate_every": (1, math.inf),
    "decoder.patience": (1, math.inf), "decoder.checkpoint_seconds": _ANY, "decoder.guidance": (0, 100),
    "plan.per_image": (1, math.inf), "plan.null_fraction": (0, 0.99), "plan.replicas": (1, math.inf),
    "generate.retries": (0, 100),
    "generate.workers": (0, 1024), "generate.samples_per_shard": (1, 100_000), "generate.batch_size": (1, math.inf),
    "train.epochs": (1, math.inf), "train.batch_size": (2, math.inf), "train.learning_rate": (1e-9, 100),
    "train.weight_decay": _ANY, "train.p": (0, 1), "train.null_p": (0, 1),
    "train.threads": (1, 1024), "evaluate.images": (1, math.inf), "evaluate.cycles": (1, math.inf),
    "evaluate.loss_images": _ANY, "evaluate.loss_seeds": (1, math.inf),
}  # fmt: skip
_CHOICES = {
    "discover.method": DISCOVERIES,
    "decoder.kind": DECODERS, "decoder.space": SPACES, "decoder.sampler": SAMPLERS,
    "decoder.structure": STRUCTURES, "plan.strategy": STRATEGIES,
    "generate.engine": ENGINES, "generate.image": IMAGES, "train.groups": ("each", "cross"),
}  # fmt: skip


def check_decoder(config: DecoderConfig) -> None:
    """Raise UsageError for the first setting of a decoder outside its range or registry, or that cannot act."""
    for name, known in _CHOICES.items():
        if name.startswith("decoder."):
            _among(name, getattr(config, name.removeprefix("decoder.")), known)
    for name, (low, high) in _RANGES.items():
        if name.startswith("decoder."):
            _within(name, getattr(config, name.removeprefix("decoder.")), low, high)
    for name, depth in config.depth.items():
        _within(f"decoder.depth {name}", depth, 1e-3, 1)
        if depth < 1 and config.steps == 1:
            raise UsageError(
                f"decoder.depth of {name} is {depth:g}, but decoder.steps is 1, so there is no time-step to stop at; take more "
                "steps or remove the depth"
            )
    if config.drop_attribute == 0 and config.guidance != 1:
        raise UsageError(
            f"decoder.guidance is {config.guidance:g}, but decoder.drop_attribute is 0, so the decoder never learns an image "
            "without the attribute; set drop_attribute to 0.1 or guidance to 1"
        )
    if not config.channels or any(width < 8 or width % 8 for width in config.channels):
        raise UsageError(f"decoder.channels must list multiples of 8, but {config.channels} came; write [64, 96]")


def check_depth(config: DecoderConfig, parents: Collection[str]) -> None:
    """Raise UsageError for a depth of what is no parent of the image."""
    for name in config.depth:
        if name not in parents:
            raise UsageError(
                f"decoder.depth names {name!r}, which is no parent of the image in the graph; they are {', '.join(parents)}"
            )


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        expected = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number from {low:g} up"
        raise UsageError(f"{name} must be {expected}, but {value!r} came")


def _among(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}, but {value!r} came; {near(value, known)}")


def check_ranges(recipe: Recipe) -> None:
    """Raise UsageError for the first value outside its range or registry."""

    def listed(name: str, values: Sequence[Any], example: str) -> None:
        if not values:
            raise UsageError(f"{name} must list at least one, but it is empty; write for example {example}")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise UsageError(f"{name} must list each only once, but {twice[0]!r} came twice; remove one")

    for name, known in _CHOICES.items():
        _among(name, attrgetter(name)(recipe), known)
    for name, (low, high) in _RANGES.items():
        _within(name, attrgetter(name)(recipe), low, high)
    rhos = recipe.data.rho if isinstance(recipe.data.rho, dict) else {"": recipe.data.rho}
    for name, rho in rhos.items():
        _within(f"data.rho {name}".rstrip(), rho, 0, 1)
    _within("train.p + train.null_p", recipe.train.p + recipe.train.null_p, 0, 1 + 1e-9)
    if recipe.plan.null_fraction == 0 and recipe.train.null_p > 0 and "cfaug" in recipe.train.methods:
        raise UsageError(
            f"train.null_p is {recipe.train.null_p:g}, but plan.null_fraction is 0, so there will be no reconstructions to show; "
            "set train.null_p to 0 or plan.null_fraction above 0"
        )
    if recipe.plan.null_fraction == 0 and "null_control" in recipe.train.methods:
        raise UsageError(
            "train.methods lists null_control, but plan.null_fraction is 0, so there will be no reconstructions; "
            "set plan.null_fraction above 0 or remove the method"
        )
    listed("train.seeds", recipe.train.seeds, "seeds: [0, 1, 2]")
    listed("train.methods", recipe.train.methods, "methods: [erm, cfaug]")
    listed("attributes.spurious", recipe.attributes.spurious, "spurious: [background]")
    for seed in recipe.train.seeds:
        _within("train.seeds", seed, *_ANY)
    check_decoder(recipe.decoder)
    if not re.fullmatch(r"\w[\w.+-]*", recipe.name):
        raise UsageError(
            f"name must be letters, digits and . _ + -, but {recipe.name!r} came; it names the output directory"
        )
    if recipe.attributes.target in recipe.attributes.spurious:
        raise UsageError(
            f"attribute {recipe.attributes.target!r} is both target and spurious; it can be only one of them"
        )
    if not recipe.graph.strip():
        raise UsageError(
            'the recipe needs a graph; for example graph: "species <-> background; species -> image; background -> image"'
        )
