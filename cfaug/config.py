"""The typed configuration: a recipe is YAML, every field has a type, a default and a reason.

A recipe never names Python code to import: kinds, sources, models and methods are looked up in closed
registries. Unknown keys are refused with the nearest known names, before anything else happens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    structure: str = "none"  # held fixed beside the noise; layout or gradient only where attributes recolour and move no edge
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
    null_fraction: float = 0.2  # of all rows: reconstructions, so that provenance can be balanced


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
    null_control_p: float = 0.5  # null_control: share of reconstructions beside real images
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

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that changes a result: worker count and engine are left out."""
        content = self.to_dict()
        for free in ("engine", "workers"):
            content["generate"].pop(free)
        root = content["data"].pop("root")
        content["data"]["root"] = Path(root).name if root else None  # runs are relocatable
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
            raise UsageError(" ".join(str(message).split()))

    parser = _Parser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, None)
    return parser


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
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" at line {mark.line + 1}" if mark else ""
            raise UsageError(
                f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}; check the indentation"
            ) from None
        if not isinstance(content, dict):
            raise UsageError(f"expected a mapping of settings in {path}, but {type(content).__name__} came")
    refuse_unknown(content)
    known = option_names()
    arguments: list[str] = []
    for override in overrides:
        name, equals, _ = override.lstrip("-").partition("=")
        top = name.split(".")[0]
        if name not in known and not any(k.startswith(name + ".") for k in known) and not _in_mapping(name, known):
            raise UsageError(f"unknown option --{name}; {near(name, known if '.' in name else [*known, top])}")
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
        raise UsageError(f"the recipe does not fit its types: {' '.join(str(error).split())[:300]}") from None
    check_ranges(recipe)
    return recipe


def _in_mapping(name: str, known: Sequence[str]) -> bool:
    """``attributes.kinds.age`` addresses an entry of a mapping-typed option."""
    return any(name.startswith(k + ".") for k in known)


def _build(kind: type, content: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for key, hint in hints.items():
        if key not in content:
            continue
        value = content[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = _build(hint, value)  # type: ignore[arg-type]
        elif get_origin(hint) is list and isinstance(value, (list, tuple)):
            value = [get_args(hint)[0](v) for v in value]
        values[key] = value
    return kind(**values)


def check_ranges(recipe: Recipe) -> None:
    """Raise UsageError for the first value outside its range or registry."""

    def among(name: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, but {value!r} came; {near(value, known)}")

    def within(name: str, value: float | None, low: float, high: float = float("inf")) -> None:
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} must be between {low:g} and {high:g}, but {value!r} came")

    among("decoder.kind", recipe.decoder.kind, DECODERS)
    among("decoder.structure", recipe.decoder.structure, STRUCTURES)
    among("plan.strategy", recipe.plan.strategy, STRATEGIES)
    among("generate.engine", recipe.generate.engine, ENGINES)
    among("train.groups", recipe.train.groups, ("each", "cross"))
    rhos = recipe.data.rho if isinstance(recipe.data.rho, dict) else {"": recipe.data.rho}
    for name, rho in rhos.items():
        within(f"data.rho {name}".rstrip(), rho, 0, 1)
    within("decoder.seconds", recipe.decoder.seconds, 1)
    within("decoder.max_steps", recipe.decoder.max_steps, 1)
    within("decoder.batch_size", recipe.decoder.batch_size, 1)
    within("decoder.drop_attribute", recipe.decoder.drop_attribute, 0, 0.9)
    within("decoder.cell_power", recipe.decoder.cell_power, 0, 1)
    within("decoder.steps", recipe.decoder.steps, 1, 1000)
    within("plan.per_image", recipe.plan.per_image, 1)
    within("plan.null_fraction", recipe.plan.null_fraction, 0, 0.99)
    within("generate.workers", recipe.generate.workers, 0, 1024)
    within("generate.samples_per_shard", recipe.generate.samples_per_shard, 1)
    within("generate.batch_size", recipe.generate.batch_size, 1)
    within("train.epochs", recipe.train.epochs, 1)
    within("train.batch_size", recipe.train.batch_size, 2)
    within("train.p", recipe.train.p, 0, 1)
    within("train.null_p", recipe.train.null_p, 0, 1)
    within("train.p + train.null_p", recipe.train.p + recipe.train.null_p, 0, 1 + 1e-9)
    within("train.null_control_p", recipe.train.null_control_p, 0, 1)
    within("train.threads", recipe.train.threads, 1, 1024)
    if not recipe.train.seeds:
        raise UsageError("train.seeds must list at least one seed, but it is empty; write seeds: [0, 1, 2]")
    if not recipe.train.methods:
        raise UsageError("train.methods must list at least one method, but it is empty; write methods: [erm, cfaug]")
    if not recipe.attributes.spurious:
        raise UsageError("attributes.spurious must name at least one attribute to intervene on, but it is empty")
    if recipe.attributes.target in recipe.attributes.spurious:
        raise UsageError(
            f"attribute {recipe.attributes.target!r} is both target and spurious; it can be only one of them"
        )
    if not recipe.graph.strip():
        raise UsageError(
            'the recipe needs a graph; for example graph: "species <-> background; species -> image; background -> image"'
        )
