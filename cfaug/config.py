"""The typed configuration: a recipe is YAML, every field has a type, a default and a reason.

A recipe never names Python code to import: kinds, sources, models and methods are looked up in closed
registries. Unknown keys are refused with the nearest known names, before anything else happens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from cfaug.data.attributes import near
from cfaug.errors import UsageError

DECODERS = ("diffusion",)
STRUCTURES = ("layout", "gradient", "none")
STRATEGIES = ("balance",)
ENGINES = ("local",)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    source: str = "digits"  # digits | double_colored_mnist | folder
    root: str | None = None  # folder: the directory with metadata.csv; MNIST: torchvision's root
    rho: float | dict[str, float] | None = None  # synthetic families: P(attribute follows the class) in training
    train_images: int | None = None  # synthetic families: training images used
    val_images: int | None = None  # synthetic families: validation images used
    seed: int = 0  # of the construction (split, colours), not of the run


@dataclass(frozen=True)
class AttributesConfig:
    """Which columns matter, and how."""

    target: str = "digit"
    spurious: list[str] = field(default_factory=lambda: ["foreground", "background"])
    kinds: dict[str, str] = field(default_factory=dict)  # categorical unless said: {age: continuous}


@dataclass(frozen=True)
class DecoderConfig:
    """The image mechanism. ``seconds: null`` scales the budget with the data."""

    kind: str = "diffusion"
    structure: str = "none"  # held fixed beside the noise; layout or gradient where attributes recolour, moving no edge
    patch: int | None = None  # space-to-depth factor; null: 1 up to 8 px, 2 up to 16 px, 4 beyond
    channels: list[int] = field(default_factory=lambda: [64, 96])
    seconds: float | None = None  # training budget; null: at most 3 minutes at 2 000 images, 25 at 20 000
    max_steps: int | None = None  # a fixed number of steps makes training reproducible; null: by seconds
    batch_size: int = 128
    learning_rate: float = 2e-3
    drop_attribute: float = 0.1  # each attribute block is hidden independently (decoupled guidance needs it)
    cell_power: float = 0.5  # an image weighs count(cell) ** -cell_power: rare attribute combinations count
    steps: int = 3  # midpoint steps each way: two network evaluations each
    guidance: float = 1.0  # of the intervened attributes only; the others stay at 1
    device: str = "cpu"


@dataclass(frozen=True)
class PlanConfig:
    """What is generated."""

    strategy: str = "balance"
    per_image: int = 1  # real interventions a source image
    null_fraction: float = 0.5  # of all rows: reconstructions; 1 / (1 + per_image) gives every source one


@dataclass(frozen=True)
class GenerateConfig:
    """How it is generated. Nothing here changes a byte except samples_per_shard and batch_size."""

    engine: str = "local"
    workers: int = 2
    samples_per_shard: int = 1000
    batch_size: int = 100


@dataclass(frozen=True)
class TrainConfig:
    """The classifiers that are compared. The same settings for every method."""

    methods: list[str] = field(
        default_factory=lambda: ["erm", "group_resampling", "group_dro", "null_control", "cfaug"]
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    model: str = "small_cnn"
    epochs: int = 25
    batch_size: int = 64
    learning_rate: float = 2e-2  # peak of the one-cycle schedule
    weight_decay: float = 0.5  # decoupled (AdamW)
    groups: str = "each"  # what group methods balance: cross (target x all spurious) | each (one at a time)
    p: float = 0.8  # cfaug: share of counterfactuals
    null_p: float = 0.1  # cfaug: share of reconstructions; real fraction = 1 - p - null_p
    device: str = "cpu"
    threads: int = 1  # a net this small loses time to a second thread
    bf16: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """How the counterfactuals themselves are judged."""

    images: int = 200  # sources used for composition, reversibility, effectiveness and the grids
    cycles: int = 10  # null interventions in a row, for composition


@dataclass(frozen=True)
class Recipe:
    """One whole run."""

    name: str = "recipe"
    data: DataConfig = field(default_factory=DataConfig)
    attributes: AttributesConfig = field(default_factory=AttributesConfig)
    graph: str = ""  # "species <-> background; species -> image; background -> image"
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as they are written to ``config.yaml``."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Everything that changes a result: worker count, engine and the absolute place of the data are left out."""
        content = self.to_dict()
        for free in ("engine", "workers"):
            content["generate"].pop(free)
        for free in (
            "methods",
            "seeds",
        ):  # a row of the results is one method with one seed: more of them only add rows
            content["train"].pop(free)
        root = content["data"]["root"]
        content["data"]["root"] = Path(root).name if root else None  # runs are relocatable
        return content

    def fingerprint(self) -> str:
        """sha256 (hex) of :meth:`identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def refuse_unknown(content: Mapping[str, Any], kind: type = Recipe, where: str = "") -> None:
    """Raise UsageError for the first key of a nested mapping that the dataclass ``kind`` does not have."""
    hints = get_type_hints(kind)
    for key, value in content.items():
        if key not in hints:
            raise UsageError(f"unknown key {where + str(key)!r} in the recipe; {near(str(key), list(hints))}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{where + key} must be a mapping of settings, but {value!r} came; indent them below it"
                )
            refuse_unknown(value, hints[key], f"{where}{key}.")  # type: ignore[arg-type]


def option_names(kind: type = Recipe, prefix: str = "") -> list[str]:
    """Every dotted option of the command line (``train.epochs``), for suggestions."""
    names: list[str] = []
    for key, hint in get_type_hints(kind).items():
        names += option_names(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else [prefix + key]  # type: ignore[arg-type]
    return names


def make_parser() -> Any:
    """jsonargparse merges defaults, YAML and ``--a.b=value``; the types above are checked there."""
    from jsonargparse import ArgumentParser

    class _Parser(ArgumentParser):  # type: ignore[misc]
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UsageError(_type_error(str(message)))

    parser = _Parser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, None)
    return parser


def _type_error(message: str) -> str:
    """jsonargparse's words in ours: which setting, what it expects, what came."""
    message = " ".join(message.split())
    found = re.search(r'Parser key "([\w.]+)":.*?[Vv]alue: (.*)$', message)
    hint: Any = Recipe
    for part in found[1].split(".") if found else ():
        hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    if found is None or hint is None:
        return f"the recipe does not fit its types: {message[:300]}"
    expected = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    return f"{found[1]} expects {expected}, but {found[2]} came; `cfaug run RECIPE.yaml --print_config` shows how it is written"


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``--a.b=value`` overrides, check types and ranges.

    Raises:
        UsageError: a missing file, bad YAML, an unknown key, a wrong type or a value out of range.
    """
    import yaml

    content: Any = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"expected a recipe file, but {path} cannot be read ({error.strerror}); `cfaug recipes ls` lists shipped ones"
            ) from None
        except UnicodeDecodeError:
            raise UsageError(f"expected a recipe in YAML, but {path} is not a text file") from None
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
            mark = getattr(error, "problem_mark", None)
            line = f" at line {mark.line + 1}" if mark else ""
            reason = " ".join(str(getattr(error, "problem", None) or error).split())
            raise UsageError(f"{path} is not valid YAML{line}: {reason}; check indentation and quotes") from None
        if not isinstance(content, dict):
            raise UsageError(f"expected a mapping of settings in {path}, but {type(content).__name__} came")
    refuse_unknown(content)
    known = option_names()
    arguments: list[str] = []
    for override in overrides:
        name, equals, _ = override.lstrip("-").partition("=")
        inside = next((k for k in known if k.startswith(name + ".")), None)
        if inside:
            raise UsageError(f"--{name} is a group of settings; set one of them, for example --{inside}=VALUE")
        if name not in known and not _in_mapping(name, known):
            raise UsageError(f"unknown option --{name}; {near(name, known)}")
        if not equals:
            raise UsageError(f"option --{name} needs a value: write --{name}=VALUE")
        arguments.append("--" + override.lstrip("-"))
    parser = make_parser()
    try:
        namespace = parser.parse_object(content)
        namespace = parser.parse_args(arguments, namespace)
        recipe: Recipe = _build(Recipe, namespace.as_dict())
    except UsageError:
        raise
    except Exception as error:  # whatever the parser says becomes our one line
        raise UsageError(_type_error(str(error))) from None
    check_ranges(recipe)
    return recipe


def _in_mapping(name: str, known: Sequence[str]) -> bool:
    """``attributes.kinds.age`` addresses an entry of a mapping-typed option."""
    return any(name.startswith(k + ".") for k in known)


def _build(kind: type, content: Mapping[str, Any], where: str = "") -> Any:
    hints = get_type_hints(kind)
    values = {}
    for key, hint in hints.items():
        if key not in content:
            continue
        value = content[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = _build(hint, value, f"{where}{key}.")  # type: ignore[arg-type]
        elif value is None and type(None) not in get_args(hint):
            raise UsageError(f"{where}{key} needs a value, but it is empty; give it one or remove the line")
        elif get_origin(hint) is list and isinstance(value, (list, tuple)):
            value = [get_args(hint)[0](v) for v in value]
        values[key] = value
    return kind(**values)


_ANY = (0.0, math.inf)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": _ANY, "data.seed": _ANY, "data.train_images": (1, math.inf), "data.val_images": (1, math.inf),
    "decoder.patch": (1, 64), "decoder.seconds": (1, math.inf), "decoder.max_steps": (1, math.inf),
    "decoder.batch_size": (1, math.inf), "decoder.learning_rate": (1e-9, 10), "decoder.drop_attribute": (0, 0.9),
    "decoder.cell_power": (0, 1), "decoder.steps": (1, 1000), "decoder.guidance": (0, 100),
    "plan.per_image": (1, math.inf), "plan.null_fraction": (0, 0.99),
    "generate.workers": (0, 1024), "generate.samples_per_shard": (1, math.inf), "generate.batch_size": (1, math.inf),
    "train.epochs": (1, math.inf), "train.batch_size": (2, math.inf), "train.learning_rate": (1e-9, 100),
    "train.weight_decay": _ANY, "train.p": (0, 1), "train.null_p": (0, 1),
    "train.threads": (1, 1024), "evaluate.images": (1, math.inf), "evaluate.cycles": (1, math.inf),
}  # fmt: skip
_CHOICES = {
    "decoder.kind": DECODERS, "decoder.structure": STRUCTURES, "plan.strategy": STRATEGIES,
    "generate.engine": ENGINES, "train.groups": ("each", "cross"),
}  # fmt: skip


def check_ranges(recipe: Recipe) -> None:
    """Raise UsageError for the first value outside its range or registry."""

    def within(name: str, value: float | None, low: float, high: float) -> None:
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            expected = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number from {low:g} up"
            raise UsageError(f"{name} must be {expected}, but {value!r} came")

    def listed(name: str, values: Sequence[Any], example: str) -> None:
        if not values:
            raise UsageError(f"{name} must list at least one, but it is empty; write for example {example}")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise UsageError(f"{name} must list each only once, but {twice[0]!r} came twice; remove one")

    for name, known in _CHOICES.items():
        value = attrgetter(name)(recipe)
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, but {value!r} came; {near(value, known)}")
    for name, (low, high) in _RANGES.items():
        within(name, attrgetter(name)(recipe), low, high)
    rhos = recipe.data.rho if isinstance(recipe.data.rho, dict) else {"": recipe.data.rho}
    for name, rho in rhos.items():
        within(f"data.rho {name}".rstrip(), rho, 0, 1)
    within("train.p + train.null_p", recipe.train.p + recipe.train.null_p, 0, 1 + 1e-9)
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
        within("train.seeds", seed, *_ANY)
    if not recipe.decoder.channels or any(width < 8 or width % 8 for width in recipe.decoder.channels):
        raise UsageError(
            f"decoder.channels must list multiples of 8, but {recipe.decoder.channels} came; write [64, 96]"
        )
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
