"""Train a classifier by one of METHODS, and keep the epoch that validation prefers.

Every method gets the same net, the same number of gradient steps (an epoch is len(train) draws, whatever the sampler)
and the same schedule. Methods with two stages share the epochs between them (``ffr``), or have a first net beside them (``jtt``).
Same seed, same threads, same machine: the same weights. Images are uint8 (N, C, H, W) until ``as_input``.

Not promised: that a net trained at ``threads=1`` equals one trained at ``threads=2`` bit for bit; that selecting on the
validation worst group is free: it reads the validation group labels, and the result's ``selection`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cfaug.data.loading import Images
from cfaug.errors import DataError, UsageError
from cfaug.train.epochs import Fitted, Loop, TrainSettings, epoch_order, fit_epochs, needed
from cfaug.train.methods import Method, method_named, method_settings
from cfaug.train.models import as_input, build_model
from cfaug.train.objectives import dfr, jtt_weights
from cfaug.train.training_sets import StreamedImages, TrainingSet
from cfaug.train.validation import SAID, Scorer, Validation, outputs, predict

__all__ = ["TrainSettings", "TrainedClassifier", "Validation", "predict", "train_classifier"]


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

    def predict(self, images: Images) -> Tensor:
        """int64 class codes (N,) of uint8 images (N, C, H, W), in memory or a stream."""
        return predict(self.model, images, bf16=self.settings.bf16)


def train_classifier(
    method: str,
    train: TrainingSet | torch.utils.data.Dataset[Any],
    val: Validation | tuple[Any, Any, Any] | None,
    settings: TrainSettings | None = None,
    seed: int = 0,
    classes: int | Sequence[str] = 10,
    progress: bool = False,
    synthetic: TrainingSet | None = None,
    checkpoint: Path | None = None,
    model: nn.Module | None = None,
) -> TrainedClassifier:
    """Train one classifier.

    ``train`` is a TrainingSet (TensorImages, MixedImages, StreamedImages) or a map-style dataset of (uint8 (C, H, W),
    target, group code); ``val`` a Validation or its (images, targets, groups); None trains all epochs and selects
    nothing. ``classes`` is the number of target classes or their names. ``synthetic``: the counterfactuals alone, for methods that
    show them first or fit the last layer on them too. ``checkpoint``: a directory in which a killed run finds its last epoch.
    ``model``: to be trained in place of the one that the settings name. With ``progress`` a tqdm bar counts epochs.
    Raises UsageError for an unknown method or missing group codes, DataError for an empty training set or a class
    without validation sample.
    """
    settings = settings or TrainSettings()
    chosen = method_named(method)
    given = (settings.method_settings or {}).get(method, {})
    settings = replace(
        settings,
        epochs=int(given.get("epochs", settings.epochs)),
        lr=given.get("learning_rate", settings.lr),
        weight_decay=given.get("weight_decay", settings.weight_decay),
    )
    own = method_settings(chosen, settings.method_settings or {}, settings.epochs)
    names = [str(code) for code in range(classes)] if isinstance(classes, int) else [str(name) for name in classes]
    source = train if isinstance(train, TrainingSet) else StreamedImages.from_dataset(train)
    if not len(source.targets):
        raise DataError("training: expected at least one image, got none; check the train split")
    if (chosen.fake_first or (chosen.last_layer and chosen.needs_shards)) and synthetic is None:
        raise UsageError(
            f"method {method}: expected the counterfactuals alone beside the training images; pass synthetic="
        )
    validation = Validation(*val) if isinstance(val, tuple) else val
    scorer = None if validation is None else Scorer(validation, names)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    started = time.perf_counter()
    try:
        job = _Job(chosen, own, settings, seed, len(names), progress, checkpoint)
        net = (model or job.net(source)).to(settings.device)
        fitted = job.run(net, source, validation, scorer, synthetic)
    finally:
        torch.set_num_threads(before)
    net.eval()
    said = SAID["last" if scorer is None else settings.selection]
    seconds = time.perf_counter() - started
    return TrainedClassifier(net, tuple(fitted.history), fitted.best_epoch, seconds, said, method, seed, settings)


@dataclass(frozen=True)
class _Job:
    """One method with one seed: its stages in their order."""

    method: Method
    own: Mapping[str, Any]
    settings: TrainSettings
    seed: int
    classes: int
    progress: bool
    checkpoint: Path | None

    def net(self, source: TrainingSet) -> nn.Module:
        settings, (channels, height, width) = self.settings, source.shape
        return build_model(
            settings.model, channels, (height, width), self.classes, self.seed, settings.weights, settings.normalization
        )

    def run(
        self,
        net: nn.Module,
        source: TrainingSet,
        validation: Validation | None,
        scorer: Scorer | None,
        synthetic: TrainingSet | None,
    ) -> Fitted:
        generator = torch.Generator().manual_seed(self.seed)
        method, epochs = self.method, self.settings.epochs
        loop = Loop(
            method, self.settings, self.own, self.classes, epochs,
            partial(epoch_order, method), generator,
            checkpoint=self._file("main"), progress=self.progress,
        )  # fmt: skip
        if method.sampler == "errors":
            weights = self._errors(source)
            loop.order = lambda images, epoch, g: torch.multinomial(
                weights, len(weights), replacement=True, generator=g
            )
        before: list[Mapping[str, float]] = []
        if method.fake_first and synthetic is not None:
            first = min(self.own["synthetic_epochs"], epochs - 1)
            early = replace(loop, epochs=first, checkpoint=self._file("synthetic"))
            before = fit_epochs(net, synthetic, early, None, None).history if first else []
            loop = replace(loop, epochs=epochs - first, first_epoch=first)
        fitted = fit_epochs(net, source, loop, validation, scorer)
        if method.last_layer:
            self._refit(net, validation, synthetic)
        return Fitted([*before, *fitted.history], fitted.best_epoch + loop.first_epoch)

    def _file(self, stage: str) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint / f"{self.method.name}-{self.seed}-{stage}.pt"

    def _errors(self, source: TrainingSet) -> Tensor:
        """Sampling weights from the training errors of a first net, trained plainly for a few epochs."""
        plain = method_named("erm")
        loop = Loop(
            plain, self.settings, {}, self.classes, self.own["identification_epochs"],
            partial(epoch_order, plain), torch.Generator().manual_seed(self.seed),
            checkpoint=self._file("first"), progress=self.progress,
        )  # fmt: skip
        net = self.net(source).to(self.settings.device)
        fit_epochs(net, source, loop, None, None)
        said = torch.cat(self._says(net, source))
        return jtt_weights(said, source.targets, self.own["upweight"])

    def _says(self, net: nn.Module, source: TrainingSet) -> list[Tensor]:
        order = list(torch.split(torch.arange(len(source.targets)), 500))
        net.eval()
        with torch.inference_mode():
            return [
                net(as_input(images.to(self.settings.device))).argmax(1).cpu()
                for images, _, _ in source.batches(0, order)
            ]

    def _refit(self, net: nn.Module, validation: Validation | None, synthetic: TrainingSet | None) -> None:
        """The last layer anew, on the validation images' groups and on the counterfactuals'."""
        if validation is None:
            raise UsageError(
                f"method {self.method.name}: expected validation images for its last layer, got none; pass val="
            )
        if validation.attributes is None:
            raise UsageError(
                f"method {self.method.name}: expected the spurious attributes of the validation images; pass attributes="
            )
        found = [outputs(cast(Any, net).embed, net, validation.images, bf16=self.settings.bf16).float()]
        targets, levels = [validation.targets], [validation.attributes]
        if synthetic is not None and self.method.needs_shards:
            order = list(torch.split(torch.arange(len(synthetic.targets)), 500))
            net.eval()
            with torch.inference_mode():
                for images, labels, _ in synthetic.batches(0, order):
                    found.append(net.embed(as_input(images.to(self.settings.device))).float().cpu())  # type: ignore[operator]
                    targets.append(labels)
            levels.append(needed(synthetic.attributes(0), self.method))
        c, subsamples = self.own["c"], int(self.own["subsamples"])
        joined = (torch.cat(found), torch.cat(targets), torch.cat(levels))
        layer = dfr(*joined, c, subsamples, self.seed, penalty=self.own["penalty"])
        layer.write_into(net.last)  # type: ignore[arg-type]
