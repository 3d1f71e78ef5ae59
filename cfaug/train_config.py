"""The settings of the classifiers and of how the counterfactuals are judged: the groups ``train`` and ``evaluate`` of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from cfaug.recipe_file import Count, Finite, Flag, Number, Seed, Share, settings

Rate = Annotated[Finite, Field(ge=1e-9, le=100)]


@settings("train")
class TrainConfig:
    """The classifiers that are compared. The same settings for every method."""

    # rows of the table: baselines, the control of reconstructions, and ours
    methods: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["erm", "group_resampling", "group_dro", "null_control", "cfaug"]
    )
    # of the classifiers; one alone cannot tell a gain from chance
    seeds: Annotated[list[Seed], Field(min_length=1)] = field(default_factory=lambda: [0, 1, 2])
    # small_cnn, any classifier of torchvision.models, or timm:NAME
    model: str = "small_cnn"
    # a local file (safetensors, or a state dict); torchvision: its own, downloaded; null: from scratch
    weights: str | None = None
    # what the weights expect: imagenet | symmetric | unit | lite, or {mean: [...], std: [...]} of values in [0, 1]; null: by the model
    normalization: str | dict[str, list[Finite]] | None = None
    mode: Literal["finetune", "frozen"] = "finetune"  # frozen: linear heads on features that are computed once
    augment: Literal["none", "standard"] = "none"  # finetune: standard crops and flips at random
    # by which figure of the validation split an epoch, or a head's penalty, is chosen; last: not chosen
    selection: Literal["worst_group", "average", "last"] = "worst_group"
    # of a method alone: {jtt: {upweight: 20}, cfaug+consistency: {weight: 1}}
    method_settings: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    epochs: Count = 25  # as many steps for every method
    batch_size: Annotated[Count, Field(ge=2)] = 64  # images in a step
    learning_rate: Rate = 2e-2  # peak of the schedule
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: with Nesterov momentum of 0.9
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"  # one_cycle: the rate rises first; cosine: it only falls
    clip: Annotated[Finite, Field(gt=0)] | None = None  # the largest norm of a gradient; null: any
    weight_decay: Annotated[Finite, Field(ge=0)] = 0.5  # decoupled under adamw
    # what group methods balance: cross (target x all spurious) | each (one at a time)
    groups: Literal["each", "cross"] = "each"
    p: Share = 0.8  # cfaug: share of counterfactuals
    null_p: Share = 0.1  # cfaug: share of reconstructions; real fraction = 1 - p - null_p
    device: str = "cpu"  # cpu | cuda | mps, or cuda:1
    threads: Annotated[Count, Field(le=1024)] = 1  # a net this small loses time to a second thread
    bf16: Flag = False  # as decoder.bf16
    keep: Flag | None = None  # the classifiers, for `cfaug audit`; null: where they are small (10 MB)


@settings("evaluate")
class EvaluateConfig:
    """How the counterfactuals themselves are judged."""

    images: Count = 200  # sources used for composition, reversibility, effectiveness and the grids
    cycles: Count = 10  # null interventions in a row, for composition
    loss_images: Number = 0  # training images of each kind for the codec, mechanism and leak losses; 0: not measured
    loss_seeds: Count = 3  # classifiers trained on each kind
