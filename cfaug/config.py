"""The typed configuration: a recipe is YAML, every field has a type, a default and a reason.

A recipe never names Python code to import: kinds, sources, models and methods are looked up in closed
registries. Unknown keys are refused with the nearest known names, before anything else happens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from cfaug.checks import check_ranges
from cfaug.errors import UsageError, near, one_line


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
    # the values of an attribute; an ordinal one's in their order: {size: [small, medium, large]}
    values: dict[str, list[str | int | float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScmConfig:
    """How attributes follow from one another."""

    # attribute: categorical | ordinal | spline_flow | additive_noise | linear; by the attribute's kind unless said
    mechanisms: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DiscoverConfig:
    """How ``cfaug discover`` looks for edges between attributes; no other stage reads it."""

    method: str = "pc"  # pc | fci (hidden causes allowed) | ges (by score)
    alpha: float = 0.05  # level of the independence tests of pc and fci
    bootstraps: int = 20  # resamples for the confidence of every edge; 0: none
    forbidden: list[str] = field(default_factory=list)  # edges that cannot be: ["species -> light"]
    required: list[str] = field(default_factory=list)  # edges that are there, and need no question mark
    tiers: list[list[str]] = field(default_factory=list)  # earlier groups first; nothing later causes anything earlier


@dataclass(frozen=True)
class DecoderConfig:
    """The image mechanism. ``seconds: null`` scales the budget with the data."""

    kind: str = "diffusion"  # diffusion
    space: str = "pixels"  # what the network sees: pixels | latents (of a variational autoencoder, for photographs)
    autoencoder: str | None = None  # latents: a local diffusers directory; null trains a small one on the data
    structure: str = "none"  # held fixed beside the noise; layout or gradient where attributes recolour, moving no edge
    patch: int | None = None  # space-to-depth factor; null: 1 up to 8 px, 2 up to 16 px, 4 beyond
    channels: list[int] = field(default_factory=lambda: [64, 96])
    seconds: float | None = None  # training budget; null: at most 3 minutes at 2 000 images, 25 at 20 000
    max_steps: int | None = None  # a fixed number of steps makes training reproducible; null: by seconds
    batch_size: int = 128
    learning_rate: float = 2e-3
    drop_attribute: float = 0.1  # each attribute block is hidden independently (decoupled guidance needs it)
    cell_power: float = 0.5  # an image weighs count(cell) ** -cell_power: rare attribute combinations count
    validate_every: int | None = None  # optimiser steps between two counterfactual validation scores; null: no scores
    patience: int = 3  # scores without improvement before training stops early
    checkpoint_seconds: float = 60.0  # how much training a kill can cost; resuming is exact
    sampler: str = "reversible"  # reversible (a null intervention returns the image) | midpoint
    steps: int = 3  # solver steps each way: reversible 4 network evaluations each, midpoint 2, reversible_euler 2
    depth: dict[str, float] = field(default_factory=dict)  # attribute: flow time to invert to, in (0, 1]; 1 unless said
    guidance: float = 1.0  # strength of the intervention: scales the intervened attributes only; the others stay at 1
    device: str = "cpu"  # cpu | cuda | mps, or cuda:1
    bf16: bool = True  # autocast to bfloat16: a quarter faster in training where the processor has it
    compile: bool = False  # torch.compile the network in training


@dataclass(frozen=True)
class PlanConfig:
    """What is generated."""

    strategy: str = "balance"  # balance | uniform | every_value | flip | counterfactual_pairs
    attributes: list[str] = field(default_factory=list)  # what is intervened on; none: the spurious ones
    per_image: int = 1  # real interventions a source image
    null_fraction: float = 0.5  # of all rows: reconstructions; 1 / (1 + per_image) gives every source one
    replicas: int = 1  # rows, each with a seed of its own, for every intervention
    joint: list[dict[str, Any]] = field(default_factory=list)  # balance: [{place: land, share: 0.7}, ...]; none: even


@dataclass(frozen=True)
class GenerateConfig:
    """How it is generated.

    With the same versions, threads and device, nothing here changes a byte except samples_per_shard, batch_size and image.
    """

    engine: str = "local"  # local | torchrun | slurm | submitit | ray
    workers: int = 2
    samples_per_shard: int = 1000
    batch_size: int = 100
    image: str = "png"  # png | png-stored (not compressed: larger, read much faster) | webp; all lossless
    destination: str | None = (
        None  # where shards/ goes: a directory or a URL (s3://BUCKET/RUN); null: the run's directory
    )
    retries: int = 2  # more attempts at a shard whose worker died or whose storage failed
    options: dict[str, Any] = field(
        default_factory=dict
    )  # of the engine, by its own names: {partition: gpu, timeout_min: 60}
    tensorboard: bool = False  # also write images/s, rejected and retried for TensorBoard


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
    loss_images: int = 0  # training images of each kind for the codec, mechanism and leak losses; 0: not measured
    loss_seeds: int = 3  # classifiers trained on each kind


@dataclass(frozen=True)
class Recipe:
    """One whole run."""

    name: str = "recipe"
    data: DataConfig = field(default_factory=DataConfig)
    attributes: AttributesConfig = field(default_factory=AttributesConfig)
    graph: str = ""  # "species <-> background; species -> image; background -> image"
    scm: ScmConfig = field(default_factory=ScmConfig)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
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
        """Everything that changes a result: worker count, engine and the places of data and autoencoder are left out."""
        content = self.to_dict()
        content.pop("discover")  # proposes a graph; what is made follows from the graph alone
        for free in ("engine", "workers", "destination", "retries", "options", "tensorboard"):
            content["generate"].pop(free)
        for free in (
            "methods",
            "seeds",
        ):  # a row of the results is one method with one seed: more of them only add rows
            content["train"].pop(free)
        content["decoder"].pop("checkpoint_seconds")
        for group, place in (("data", "root"), ("decoder", "autoencoder")):  # runs are relocatable
            came = content[group][place]
            content[group][place] = Path(came).name if came else None
        return content

    def model_identity(self) -> dict[str, Any]:
        """The part of :meth:`identity` that a fitted model depends on: what is planned, generated and trained later is not."""
        content = self.identity()
        return {name: content[name] for name in ("data", "attributes", "graph", "scm", "decoder", "seed")}

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
    message = one_line(message, 2000)
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
            reason = one_line(getattr(error, "problem", None) or error)
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
