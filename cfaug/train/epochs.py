"""The loop over epochs: one model, one objective, one schedule, and the epoch that the validation split prefers."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cfaug.autocast import autocast
from cfaug.data.files import replace_file
from cfaug.errors import DataError, ShardError, UsageError, near, one_line
from cfaug.train.methods import Method
from cfaug.train.models import as_input
from cfaug.train.objectives import (
    GroupDRO,
    as_columns,
    class_weights,
    erm_loss,
    group_weights,
    lisa_mix,
    paired_consistency_loss,
)
from cfaug.train.training_sets import TrainingSet
from cfaug.train.validation import Scorer, Validation, predict, rank_of


@dataclass(frozen=True)
class TrainSettings:
    """What is shared by every method of a table. ``lr`` is the peak of the schedule; ``weight_decay`` is decoupled under AdamW;
    ``clip`` the largest norm of a gradient. ``threads`` 1 because a small net loses time to a second thread (0 leaves torch's own
    count); ``bf16`` autocasts to bfloat16 where the device has it. ``method_settings``: method -> its own settings."""

    epochs: int = 25
    batch_size: int = 64
    lr: float = 2e-2
    weight_decay: float = 0.5
    optimizer: str = "adamw"
    schedule: str = "one_cycle"
    clip: float | None = None
    model: str = "small_cnn"
    weights: str | None = None
    normalization: Any = None
    selection: Any = "worst_group"
    device: str = "cpu"
    threads: int = 1
    bf16: bool = False
    method_settings: Any = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"train.{name}: expected a number above 0, got {getattr(self, name)}; correct it")
        for name, known in (
            ("optimizer", ("adamw", "sgd")), ("schedule", ("one_cycle", "cosine")), ("selection", ("worst_group", "average", "last")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise UsageError(
                    f"train.{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}; {near(str(getattr(self, name)), known)}"
                )


@dataclass
class Loop:
    """One stage of training. ``order``: (images, epoch, generator) -> the positions of that epoch. ``own``: the method's settings."""

    method: Method
    settings: TrainSettings
    own: Mapping[str, Any]
    classes: int
    epochs: int
    order: Callable[[TrainingSet, int, torch.Generator], Tensor]
    generator: torch.Generator
    first_epoch: int = 0
    checkpoint: Path | None = None
    progress: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a stage has done: one row per epoch, and the epoch (from 0) whose weights the model has."""

    history: list[Mapping[str, float]]
    best_epoch: int


def fit_epochs(
    model: nn.Module, source: TrainingSet, loop: Loop, validation: Validation | None, scorer: Scorer | None
) -> Fitted:
    """Train ``model`` in place; it ends with the weights of the chosen epoch.

    With a ``checkpoint`` file every epoch is written there, and a killed run goes on behind the last one, with the same numbers.

    Raises:
        DataError: the loss is not finite. UsageError: group codes are missing.
    """
    settings, method = loop.settings, loop.method
    world, rank = _world()
    trained = _distributed(model) if world > 1 else model
    optimizer = _optimizer(model, settings)
    steps = max(1, len(_split_batches(torch.arange(source.shown), settings.batch_size))) * loop.epochs
    schedule = _schedule(optimizer, settings, steps)
    robust = _robust(source, method, loop.own) if method.objective == "group_dro" else None
    selects = scorer is not None and validation is not None and settings.selection != "last"
    history: list[Mapping[str, float]] = []
    best: tuple[float, float] = (-1.0, -1.0)
    best_epoch, best_state, start = loop.epochs - 1, None, 0
    if loop.checkpoint is not None and loop.checkpoint.exists():
        start, history, best, best_epoch, best_state = _restore(loop, model, optimizer, schedule, robust)
    for epoch in tqdm(range(start, loop.epochs), desc=method.name, disable=not loop.progress, leave=False):
        model.train()
        number = loop.first_epoch + epoch
        order = loop.order(source, number, loop.generator)[: source.shown]
        levels = source.attributes(number) if method.objective == "lisa" else None
        total = torch.zeros(())
        batches = _split_batches(order, settings.batch_size)
        mine = [positions[rank::world] for positions in batches] if world > 1 else batches
        for positions, (images, targets, groups) in zip(mine, source.batches(number, mine)):
            attributes = None if levels is None else levels[positions]
            loss = _loss(trained, images, targets, groups, attributes, loop, robust)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            total += loss.detach().cpu()
        row = {"epoch": float(number), "loss": float(total) / len(batches)}
        if not math.isfinite(row["loss"]):
            raise DataError(
                f"training {method.name}: expected a finite loss, got {row['loss']} in epoch {number}; lower train.learning_rate"
            )
        if scorer is not None and validation is not None:
            average, worst = scorer(predict(model, validation.images, bf16=settings.bf16))
            row |= {"average_accuracy": average, "worst_group_accuracy": worst}
            if selects and rank_of(average, worst, settings.selection) > best:
                best, best_epoch = rank_of(average, worst, settings.selection), epoch
                best_state = copy.deepcopy(model.state_dict())
        history.append(row)
        if loop.checkpoint is not None and rank == 0:
            _save(loop, model, optimizer, schedule, robust, (epoch + 1, history, best, best_epoch, best_state))
    if best_state is not None:
        model.load_state_dict(best_state)
    return Fitted(history, best_epoch)


def _loss(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    groups: Tensor | None,
    attributes: Tensor | None,
    loop: Loop,
    robust: GroupDRO | None,
) -> Tensor:
    settings, objective, device = loop.settings, loop.method.objective, loop.settings.device
    inputs, targets = as_input(images.to(device)), targets.to(device)
    if objective == "consistency":
        pairs = inputs.flatten(0, 1)  # factual and counterfactual in turns
        with autocast(device, settings.bf16):
            logits = model(as_input(pairs)).float()
        loss: Tensor = erm_loss(logits, targets.repeat_interleave(2))
        return loss + float(loop.own["weight"]) * paired_consistency_loss(logits[0::2], logits[1::2], targets)
    if objective == "lisa":
        if attributes is None:
            raise UsageError(
                f"method {loop.method.name}: expected the spurious attributes of the training images, got none; pass attributes="
            )
        mixed, soft = lisa_mix(
            inputs, targets, attributes, loop.classes, loop.own["alpha"], loop.own["p_sel"], loop.generator
        )
        with autocast(device, settings.bf16):
            logits = model(mixed).float()
        return erm_loss(logits, soft)
    with autocast(device, settings.bf16):
        logits = model(inputs).float()
    if robust is None:
        return erm_loss(logits, targets)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    robust_loss: Tensor = robust(losses.cpu(), needed(groups, loop.method))
    return robust_loss


def needed(codes: Tensor | None, method: Method) -> Tensor:
    """Group codes; UsageError without them."""
    if codes is None:
        raise UsageError(f"method {method.name}: expected group codes with the training images; pass groups=")
    return codes


def epoch_order(method: Method, source: TrainingSet, epoch: int, generator: torch.Generator) -> Tensor:
    """An epoch's N positions: a permutation, N draws with replacement under balancing weights, or N of a balanced subset.

    The subset has as many images of every group as the smallest has (of the cross of all columns of codes); it is the same in every
    epoch, and is gone through as often as N asks for.
    """
    count = len(source.targets)
    if method.sampler == "subset":
        codes = needed(source.groups(epoch), method)
        rows = balanced_subset(codes, torch.Generator().manual_seed(generator.initial_seed()))
        rounds = -(-count // len(rows))
        return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])[:count]
    weights = None
    if method.sampler == "class":
        weights = class_weights(source.targets)
    elif method.sampler == "group":
        weights = group_weights(needed(source.groups(epoch), method))
    elif method.sampler == "origin":
        weights = source.balance(epoch)
    if weights is None:  # where a first net's errors count, its weights are given instead
        return torch.randperm(count, generator=generator)
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def balanced_subset(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of as many images of every group (a row of codes (N, A)) as the smallest group has; those of no group are left out."""
    columns = as_columns(codes)
    known = (columns >= 0).all(dim=1)
    _, own, count = torch.unique(columns[known], dim=0, return_inverse=True, return_counts=True)
    places, least = known.nonzero()[:, 0], int(count.min())
    chosen = [places[own == g][torch.randperm(int(count[g]), generator=generator)[:least]] for g in range(len(count))]
    return torch.cat(chosen).sort().values


def _split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of an epoch; a last batch smaller than a quarter is left out (BatchNorm on a few images is noise)."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) < batch_size // 4:
        batches.pop()
    return batches


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    # weight decay on matrices only: decaying BatchNorm's scale or a bias changes the function, not its complexity
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=settings.device == "cpu")


def _schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Any:
    """One cycle with a warm-up of a quarter (Smith & Topin 2019), or half a cosine from the peak to 0."""
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=max(steps, 8), pct_start=0.25, cycle_momentum=False
    )


def _robust(source: TrainingSet, method: Method, own: Mapping[str, Any]) -> GroupDRO:
    codes = as_columns(needed(source.groups(0), method))
    counts = torch.bincount(codes[codes >= 0], minlength=source.group_count)
    return GroupDRO(len(counts), own["step_size"], own["adjustment"], counts)


# -- several processes -------------------------------------------------------------------------------------------------


def _world() -> tuple[int, int]:
    """(number of processes that train together, which one this is): (1, 0) without torchrun."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_world_size(), torch.distributed.get_rank()) if ready else (1, 0)


def _distributed(model: nn.Module) -> nn.Module:
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" and device.index is not None else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _save(loop: Loop, model: nn.Module, optimizer: Any, schedule: Any, robust: GroupDRO | None, progress: Any) -> None:
    assert loop.checkpoint is not None
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "generator": loop.generator.get_state(), "robust": None if robust is None else robust.state_dict(),
        "progress": progress,
    }  # fmt: skip
    stream = io.BytesIO()
    torch.save(content, stream)
    loop.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    replace_file(loop.checkpoint, stream.getvalue())


def _restore(loop: Loop, model: nn.Module, optimizer: Any, schedule: Any, robust: GroupDRO | None) -> Any:
    assert loop.checkpoint is not None
    try:
        content = torch.load(loop.checkpoint, weights_only=True)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        schedule.load_state_dict(content["schedule"])
        loop.generator.set_state(content["generator"])
        if robust is not None:
            robust.load_state_dict(content["robust"])
        return content["progress"]
    except Exception as error:  # torch's, of many kinds
        raise ShardError(f"{loop.checkpoint}: cannot be continued from ({one_line(error, 100)}); remove it") from None
