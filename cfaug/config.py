"""The typed configuration: a recipe is YAML; every field has a type, a range, a default and a reason.

A recipe never names Python code to import: kinds, sources, models and methods are looked up in closed registries. An unknown key
is refused with the nearest known names before anything else happens, and a removed one with what to do instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue

from cfaug import recipe_file as fields
from cfaug.data.files import expand
from cfaug.decoder_config import NO_AUTOENCODER as NO_AUTOENCODER
from cfaug.decoder_config import SAMPLERS as SAMPLERS
from cfaug.decoder_config import DecoderConfig as DecoderConfig
from cfaug.decoder_config import Sampler as Sampler
from cfaug.errors import UsageError, near
from cfaug.recipe_file import (
    Category,
    Count,
    Finite,
    Flag,
    Number,
    Seed,
    Share,
    read_yaml,
    refuse_keys,
    set_option,
    settings,
)
from cfaug.train_config import EvaluateConfig as EvaluateConfig
from cfaug.train_config import TrainConfig as TrainConfig

Discovery = Literal["pc", "fci", "ges"]
Strategy = Literal["balance", "uniform", "every_value", "flip", "counterfactual_pairs", "where_it_fails"]
EngineName = Literal["local", "torchrun", "slurm", "submitit", "ray"]
ImageFormat = Literal["png", "png-stored", "webp"]

DISCOVERIES: tuple[str, ...] = get_args(Discovery)
STRATEGIES: tuple[str, ...] = get_args(Strategy)
ENGINES: tuple[str, ...] = get_args(EngineName)
IMAGES: tuple[str, ...] = get_args(ImageFormat)

REMOVED = {
    "decoder.semantic": "remove the line (a learned latent was no better than none)",
    "decoder.distil_pairs": "remove the line (there is no distilled decoder any more)",
    "decoder.distil_share": "remove the line (there is no distilled decoder any more)",
    "decoder.kind: distilled": "write kind: diffusion; its quickest is sampler: reversible_euler with steps: 1",
    "discover.method: dagma": "write method: pc, fci or ges",
}
"""Settings, and values of settings, of older recipes -> what to do."""


@settings("data")
class DataConfig:
    """Where the images come from."""

    # digits | colored_mnist | double_colored_mnist | wildlife_mnist | morpho_mnist | folder | huggingface | webdataset | waterbirds | celeba | urbancars | metashift |
    # wilds | spuco
    source: str = "digits"
    root: str | None = (
        None  # folder: the directory with metadata.csv; huggingface: a hub id or a directory; MNIST: torchvision's root
    )
    # working size of stored images: one number or [height, width]; null: as they are, which must then be one size
    size: Count | list[Count] | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"  # crop resizes the short side and keeps the centre
    # folder: a column of metadata.csv with file names, or a directory of PNGs named as the images; white is the object
    masks: str | None = None
    # stored images: a directory in the same layout whose training images have attributes independent of the target, for the oracle row
    oracle: str | None = None
    # decoded images that are held in memory, at most; larger splits are decoded again whenever they are needed
    memory_gb: Annotated[Finite, Field(ge=0)] = 2.0
    workers: Annotated[Number, Field(le=256)] = 2  # processes that decode images where these are not held
    rho: Share | dict[str, Share] | None = None  # synthetic families: P(attribute follows the class) in training
    train_images: Count | None = None  # synthetic families: training images used
    val_images: Count | None = None  # synthetic families: validation images used
    seed: Seed = 0  # of the construction (split, colours), not of the run

    def __post_init__(self) -> None:
        """Raise UsageError for a size that is not one or two numbers of at least 4."""
        sides = [self.size] if isinstance(self.size, int) else self.size or [4]
        if (isinstance(self.size, list) and len(sides) != 2) or min(sides) < 4:
            raise UsageError(
                f"data.size: expected one number of pixels of at least 4, or [height, width], got {self.size}; write for example 224"
            )


@settings("attributes")
class AttributesConfig:
    """Which columns matter, and how."""

    target: str = "digit"  # what the classifier predicts; every training image needs it
    spurious: list[str] = field(default_factory=lambda: ["foreground", "background"])  # [] for `cfaug suspect` alone
    pseudo: list[str] = field(
        default_factory=list
    )  # of the spurious ones, guesses of `cfaug suspect`: every table says so
    kinds: dict[str, str] = field(default_factory=dict)  # categorical unless said: {age: continuous}
    # the values of an attribute; an ordinal one's in their order: {size: [small, medium, large]}
    values: dict[str, list[Category]] = field(default_factory=dict)


@settings("scm")
class ScmConfig:
    """How attributes follow from one another."""

    # attribute: categorical | ordinal | spline_flow | additive_noise | linear; by the attribute's kind unless said
    mechanisms: dict[str, str] = field(default_factory=dict)


@settings("discover")
class DiscoverConfig:
    """How ``cfaug discover`` looks for edges between attributes; no other stage reads it."""

    method: Discovery = "pc"  # pc | fci (hidden causes allowed) | ges (by score)
    alpha: Annotated[Finite, Field(ge=1e-12, le=0.5)] = 0.05  # level of the independence tests of pc and fci
    bootstraps: Number = 20  # resamples for the confidence of every edge; 0: none
    forbidden: list[str] = field(default_factory=list)  # edges that cannot be: ["species -> light"]
    required: list[str] = field(default_factory=list)  # edges that are there, and need no question mark
    tiers: list[list[str]] = field(default_factory=list)  # earlier groups first; nothing later causes anything earlier


@settings("plan")
class PlanConfig:
    """What is generated."""

    # balance | uniform | every_value | flip | counterfactual_pairs | where_it_fails (more where an audited classifier flips)
    strategy: Strategy = "balance"
    audit: str | None = None  # where_it_fails: the directory of a run that `cfaug audit` was asked about
    audited: str | None = None  # where_it_fails: the model, where several were audited
    attributes: list[str] = field(default_factory=list)  # what is intervened on; none: the spurious ones
    per_image: Count = 1  # real interventions per source image
    # of all rows: reconstructions; 1 / (1 + per_image) gives every source one
    null_fraction: Annotated[Finite, Field(ge=0, le=0.99)] = 0.5
    # of all rows: invariant samples, whose background is hidden by one colour, do(x=null); needs a layer "background"
    invariant_fraction: Annotated[Finite, Field(ge=0, le=0.9)] = 0.0
    replicas: Count = 1  # rows, each with a seed of its own, for every intervention
    # balance: [{place: land, share: 0.7}, ...]; none: even
    joint: list[dict[str, Category]] = field(default_factory=list)


@settings("generate")
class GenerateConfig:
    """How it is generated.

    With the same versions, threads and device, nothing here changes a byte except samples_per_shard, batch_size and image.
    """

    engine: EngineName = "local"  # local | torchrun | slurm | submitit | ray
    workers: Annotated[Number, Field(le=1024)] = 2  # processes; 0: this one
    samples_per_shard: Annotated[Count, Field(le=100_000)] = 1000  # what a kill can cost; readers like few large files
    batch_size: Count = 100  # micro-batches, fixed by the plan; smaller where memory is short
    image: ImageFormat = "png"  # png | png-stored (not compressed: larger, read much faster) | webp; all lossless
    # where shards/ goes: a directory or a URL (s3://BUCKET/RUN); null: the run's directory
    destination: str | None = None
    retries: Annotated[Number, Field(le=100)] = 2  # more attempts at a shard whose worker died or whose storage failed
    # of the engine, by its own names: {partition: gpu, timeout_min: 60}
    options: dict[str, JsonValue] = field(default_factory=dict)
    tensorboard: Flag = False  # also write images/s, rejected and retried for TensorBoard


@settings("gate")
class GateConfig:
    """Which counterfactuals are good enough to be written."""

    enabled: Flag | None = None  # null: on for layers, functions, pipelines and what is composed of them
    care: list[str] = field(default_factory=list)  # attributes, beside the target, that must not change
    # of real images, the share that all criteria together would reject; every threshold follows from it
    false_rejections: Annotated[Finite, Field(gt=0, le=0.5)] = 0.05
    # those that are asked, where they can be
    criteria: list[Literal["shown", "kept", "text", "direction", "unchanged", "trace", "near", "copy"]] = field(
        default_factory=lambda: ["shown", "kept", "text", "direction", "unchanged", "trace", "near", "copy"]
    )
    # text: a local directory of a CLIP model of transformers; null: images are not compared with texts
    clip: str | None = None
    # attribute -> value -> text; "a photo of VALUE" unless said
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    # where an intervention may change pixels: {background: [place], object: [colour]}; unless said, its layer or its stamps' boxes
    regions: dict[Literal["background", "object"], list[str]] = field(default_factory=dict)
    # share of the pixels outside the region that may change; null: as under null interventions
    outside: Share | None = None
    retries: Annotated[Number, Field(le=100)] = 2  # how often a rejected image is drawn again, where the decoder draws
    decisions: str | None = (
        None  # the decisions.json of `cfaug review`: what a person called wrong is not written again
    )
    # a reader judges only images of folds that it was not trained on; null: 5 of heads on pretrained weights, 2 of whole nets
    folds: Annotated[Count, Field(ge=2, le=20)] | None = None
    # real images that must show a value apart from what usually goes with it, or nothing is judged by it
    least: Annotated[Count, Field(ge=2)] = 10


@settings("")
class Recipe:
    """One whole run."""

    name: str = "recipe"  # of the output directory, shards/NAME, and of the rows of results
    data: DataConfig = field(default_factory=DataConfig)
    attributes: AttributesConfig = field(default_factory=AttributesConfig)
    graph: str = ""  # "species <-> background; species -> image; background -> image"
    scm: ScmConfig = field(default_factory=ScmConfig)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: Seed = 0  # of model, plan and generation; the classifiers have train.seeds

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
            "keep",
        ):  # a row of the results is one method with one seed: more of them only add rows
            content["train"].pop(free)
        content["decoder"].pop("checkpoint_seconds")
        for free in ("memory_gb", "workers"):
            content["data"].pop(free)
        # runs are relocatable
        for group, place in (
            ("data", "root"),
            ("data", "oracle"),
            ("decoder", "autoencoder"),
            ("train", "weights"),
            ("gate", "clip"),
        ):
            came = content[group][place]
            content[group][place] = Path(came).name if came else None
        editor = content["decoder"]["editor"]
        for group, place in ((content["decoder"]["mask"], "path"), (editor, "pipeline"), (editor["guide"], "clip")):
            if isinstance(group, dict) and group.get(place):
                group[place] = Path(str(group[place])).name
        return content

    def model_identity(self) -> dict[str, Any]:
        """The part of :meth:`identity` that a fitted model depends on: what is planned, generated and trained later is not."""
        content = self.identity()
        return {name: content[name] for name in ("data", "attributes", "graph", "scm", "decoder", "seed")}

    def fingerprint(self) -> str:
        """sha256 (hex) of :meth:`identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Raise UsageError for settings that cannot act together, and for what a run cannot do without."""
        train, attributes = self.train, self.attributes
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise UsageError(
                f"name: expected letters, digits and . _ + -, got {self.name!r}; it names the output directory"
            )
        if not attributes.spurious:
            raise UsageError(
                "attributes.spurious: expected at least one attribute, got none; name what could be a shortcut, or ask `cfaug suspect RECIPE.yaml`"
            )
        if stray := next((name for name in attributes.pseudo if name not in attributes.spurious), None):
            raise UsageError(
                f"attributes.pseudo: expected spurious attributes, got {stray!r}; {near(stray, attributes.spurious)}"
            )
        if unconfirmed := next(
            (name for name in (attributes.target, *attributes.spurious) if name.endswith("?")), None
        ):
            raise UsageError(
                f"attribute {unconfirmed!r} is a suspicion that nobody has confirmed; look at its collages, and take the ? away in the table and here"
            )
        if not self.graph.strip():
            raise UsageError(
                'graph: expected the causes, got nothing; write for example graph: "species <-> background; species -> image; background -> image"'
            )
        lists: dict[str, Sequence[Any]] = {
            "train.seeds": train.seeds, "train.methods": train.methods, "attributes.spurious": attributes.spurious,
        }  # fmt: skip
        for name, values in lists.items():
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise UsageError(f"{name}: expected each entry once, got {twice[0]!r} twice; remove one")
        if attributes.target in attributes.spurious:
            raise UsageError(f"attribute {attributes.target!r} is both target and spurious; it can be only one of them")
        if train.p + train.null_p > 1 + 1e-9:
            raise UsageError(
                f"train.p + train.null_p: expected at most 1, got {train.p + train.null_p:g}; what remains is the share of real images"
            )
        if self.plan.null_fraction == 0 and train.null_p > 0 and "cfaug" in train.methods:
            raise UsageError(
                f"train.null_p is {train.null_p:g}, but plan.null_fraction is 0, so there will be no reconstructions to show; "
                "set train.null_p to 0 or plan.null_fraction above 0"
            )
        if self.plan.null_fraction == 0 and "null_control" in train.methods:
            raise UsageError(
                "train.methods lists null_control, but plan.null_fraction is 0, so there will be no reconstructions; "
                "set plan.null_fraction above 0 or remove the method"
            )
        if self.decoder.space == "latents" and not self.decoder.autoencoder:
            raise UsageError(NO_AUTOENCODER)


def option_names() -> list[str]:
    """Every dotted option of the command line (``train.epochs``)."""
    return fields.option_names(Recipe)


def load_recipe(path: str | Path | None, overrides: Sequence[str] = (), labels_only: bool = False) -> Recipe:
    """Read a recipe file, apply ``--a.b=value`` overrides, check types, ranges and combinations.

    With ``labels_only`` it may lack a graph and spurious attributes, and combinations are not checked: nothing can be run with it.

    Raises:
        UsageError: a missing file, bad YAML, an unknown or removed key, a wrong type or a value out of range.
    """
    content = _read(expand(path)) if path is not None else {}
    refuse_keys(content, Recipe, REMOVED)
    for override in overrides:
        set_option(content, Recipe, override.lstrip("-"), REMOVED)
    recipe = Recipe(**content)
    if not labels_only:
        recipe.check()
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"expected a recipe file, but {path} cannot be read ({error.strerror}); `cfaug recipes ls` lists shipped ones"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"expected a recipe in YAML, but {path} is not a text file in UTF-8; save it as one") from None
    content = read_yaml(text, path)
    if not isinstance(content, dict):
        raise UsageError(
            f"expected a mapping of settings in {path}, got {type(content).__name__}; see `cfaug recipes ls`"
        )
    return content
