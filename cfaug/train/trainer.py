"""Train a classifier by one of METHODS, and keep the epoch with the best validation worst-group accuracy.

Every method gets the same net, the same number of gradient steps (an epoch is len(train) draws, whatever the sampler)
and the same schedule: AdamW with a one-cycle learning rate (Smith & Topin 2019), or SGD with momentum.
Same seed, same threads, same machine: the same weights. Images are uint8 (N, C, H, W) until ``as_input``.

Not promised: that a net trained at ``threads=1`` equals one trained at ``threads=2`` bit for bit; that selecting on the
validation worst group is free: it reads the validation group labels, and the result's ``selection`` says so.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from cfaug.autocast import autocast
from cfaug.errors import DataError, UsageError, listed, near
from cfaug.train.methods import Method, method_named
from cfaug.train.models import as_input, build_model
from cfaug.train.objectives import GroupDRO, as_columns, class_weights, erm_loss, group_weights
from cfaug.train.training_sets import StreamedImages, TrainingSet

log = logging.getLogger(__name__)

BY_WORST_GROUP = "worst-group validation accuracy"
BY_LAST_EPOCH = "last epoch"


@dataclass(frozen=True)
class TrainSettings:
    """What is shared by every method of a table. ``lr`` is the peak of the one-cycle schedule; ``weight_decay`` is
    decoupled under AdamW; ``group_step_size`` is GroupDRO's eta_q. ``threads`` 1 because a net this small loses time to
    a second thread (0 leaves torch's own count); ``bf16`` autocasts to bfloat16 where the device has it."""

    epochs: int = 25
    batch_size: int = 64
    lr: float = 2e-2
    weight_decay: float = 0.5
    optimizer: str = "adamw"
    model: str = "small_cnn"
    device: str = "cpu"
    threads: int = 1
    bf16: bool = False
    group_step_size: float = 0.01
    group_adjustment: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"train.{name}: expected a number above 0, got {getattr(self, name)}; correct it")
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(
                f"train.optimizer: expected adamw or sgd, got {self.optimizer!r}; {near(self.optimizer, ('adamw', 'sgd'))}"
            )


@dataclass(frozen=True)
class Validation:
    """images uint8 (V, C, H, W); targets (V,) int64; groups: the frame of ``Grouper.labels`` (or one Series, or an
    array of labels); names: every group that could occur, so that an empty one can be warned about."""

    images: Tensor
    targets: Tensor
    groups: pd.DataFrame | pd.Series | Sequence[str] | np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedClassifier:
    """``model`` holds the weights of ``best_epoch`` (counted from 0) and is in eval mode; ``history`` has one mapping
    per epoch: loss, and average_accuracy / worst_group_accuracy on validation where there was one."""

    model: nn.Module
    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    seconds: float
    selection: str
    method: str
    seed: int
    settings: TrainSettings = field(default_factory=TrainSettings)

    def predict(self, images: Tensor) -> Tensor:
        """int64 class codes (N,) of uint8 images (N, C, H, W)."""
        return predict(self.model, images, bf16=self.settings.bf16)


def predict(model: nn.Module, images: Tensor, batch_size: int = 500, bf16: bool = False) -> Tensor:
    """Class codes (N,) int64 of images (N, C, H, W), uint8 or float in [-1, 1]; the mode of the model is restored."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode(), autocast(device, bf16):
        parts = [model(as_input(part.to(device))).argmax(1).cpu() for part in torch.split(images, batch_size)]
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


class _Scorer:
    """Average and worst-group accuracy of predictions on one validation set; groups are encoded once."""

    def __init__(self, validation: Validation, classes: Sequence[str]) -> None:
        self.targets = validation.targets.numpy()
        present = np.bincount(self.targets, minlength=len(classes))
        missing = [classes[int(code)] for code in np.flatnonzero(present == 0)]
        if missing:
            raise DataError(
                f"validation: expected samples of every target class, got none of {listed(map(repr, missing), 1)}; move some "
                "of its images to split val, or the worst group cannot be watched"
            )
        groups = validation.groups
        frame = groups if isinstance(groups, pd.DataFrame) else pd.DataFrame({"group": np.asarray(groups)})
        if len(frame) != len(self.targets):
            raise DataError(
                f"validation: expected {len(self.targets)} group labels, got {len(frame)}; pass one per sample"
            )
        self.codes: list[np.ndarray] = []
        seen: set[str] = set()
        for name in frame:
            codes, values = pd.factorize(frame[name].astype(str))
            self.codes.append(codes)
            seen.update(values)
        empty = [name for name in validation.names if name not in seen]
        if empty:
            log.warning(
                "validation has no sample in %d of %d groups (%s): they take no part in choosing the epoch",
                len(empty), len(validation.names), listed(empty),
            )  # fmt: skip

    def __call__(self, predictions: Tensor) -> tuple[float, float]:
        """(average, worst-group) accuracy, fractions."""
        right = predictions.numpy() == self.targets
        worst = min(float((np.bincount(code, weights=right) / np.bincount(code)).min()) for code in self.codes)
        return float(right.mean()), worst


def _order(method: Method, targets: Tensor, codes: Tensor | None, generator: torch.Generator) -> Tensor:
    """An epoch's N positions: a permutation, or N draws with replacement under balancing weights."""
    if method.sampler == "shuffle":
        return torch.randperm(len(targets), generator=generator)
    weights = class_weights(targets) if method.sampler == "class" else group_weights(_needed(codes, method))
    return torch.multinomial(weights, len(targets), replacement=True, generator=generator)


def _needed(codes: Tensor | None, method: Method) -> Tensor:
    if codes is None:
        raise UsageError(f"method {method.name}: expected group codes with the training images; pass groups=")
    return codes


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


def train_classifier(
    method: str,
    train: TrainingSet | torch.utils.data.Dataset[Any],
    val: Validation | tuple[Any, Any, Any] | None,
    settings: TrainSettings | None = None,
    seed: int = 0,
    classes: int | Sequence[str] = 10,
    progress: bool = False,
) -> TrainedClassifier:
    """Train one classifier.

    ``train`` is a TrainingSet (TensorImages, MixedImages, StreamedImages) or a map-style dataset of (uint8 (C, H, W),
    target, group code); ``val`` a Validation or its (images, targets, groups); None trains all epochs and selects
    nothing. ``classes`` is the number of target classes or their names. With ``progress`` a tqdm bar counts epochs.
    Raises UsageError for an unknown method or missing group codes, DataError for an empty training set or a class
    without validation sample.
    """
    settings = settings or TrainSettings()
    chosen = method_named(method)
    names = [str(code) for code in range(classes)] if isinstance(classes, int) else [str(name) for name in classes]
    source = train if isinstance(train, TrainingSet) else StreamedImages.from_dataset(train)
    if not len(source.targets):
        raise DataError("training: expected at least one image, got none; check the train split")
    validation = Validation(*val) if isinstance(val, tuple) else val
    scorer = None if validation is None else _Scorer(validation, names)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    try:
        return _fit(chosen, source, validation, scorer, settings, seed, len(names), progress)
    finally:
        torch.set_num_threads(before)


def _fit(
    method: Method,
    source: TrainingSet,
    validation: Validation | None,
    scorer: _Scorer | None,
    settings: TrainSettings,
    seed: int,
    classes: int,
    progress: bool,
) -> TrainedClassifier:
    from tqdm import tqdm

    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = source.shape
    model = build_model(settings.model, channels, (height, width), classes, seed).to(settings.device)
    optimizer = _optimizer(model, settings)
    steps = max(1, len(_split_batches(torch.arange(len(source.targets)), settings.batch_size))) * settings.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    robust: GroupDRO | None = None
    if method.objective == "group_dro":
        codes = as_columns(_needed(source.groups(0), method))
        counts = torch.bincount(codes[codes >= 0], minlength=source.group_count)
        robust = GroupDRO(len(counts), settings.group_step_size, settings.group_adjustment, counts)
    history: list[Mapping[str, float]] = []
    best: tuple[float, float] = (-1.0, -1.0)
    best_epoch, best_state = settings.epochs - 1, None
    for epoch in tqdm(range(settings.epochs), desc=f"{method.name} seed {seed}", disable=not progress, leave=False):
        model.train()
        order = _order(method, source.targets, source.groups(epoch), generator)
        total = torch.zeros(())
        batches = _split_batches(order, settings.batch_size)
        for images, targets, groups in source.batches(epoch, batches):
            with autocast(settings.device, settings.bf16):
                logits = model(as_input(images.to(settings.device))).float()
            targets = targets.to(settings.device)
            if robust is None:
                loss = erm_loss(logits, targets)
            else:
                losses = functional.cross_entropy(logits, targets, reduction="none")
                loss = robust(losses.cpu(), _needed(groups, method))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach().cpu()
        row = {"epoch": float(epoch), "loss": float(total) / len(batches)}
        if not math.isfinite(row["loss"]):
            raise DataError(f"training {method.name}: the loss is {row['loss']} in epoch {epoch}; lower train.lr")
        if scorer is not None and validation is not None:
            average, worst = scorer(predict(model, validation.images, bf16=settings.bf16))
            row |= {"average_accuracy": average, "worst_group_accuracy": worst}
            if (worst, average) > best:
                best, best_epoch, best_state = (worst, average), epoch, copy.deepcopy(model.state_dict())
        history.append(row)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    seconds = time.perf_counter() - started
    selection = BY_LAST_EPOCH if scorer is None else BY_WORST_GROUP
    return TrainedClassifier(model, tuple(history), best_epoch, seconds, selection, method.name, seed, settings)
