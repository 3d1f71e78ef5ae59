"""The readers of a gate: what an attribute's value looks like, learned from the training images and cross-fitted.

    fold(source) = crc32(key) mod F,      the reader of fold k is trained on all other folds and judges images made of fold k

so no image is judged by a reader that saw its source. With pretrained weights a reader is a linear head on the frozen net; without
them it is a small net of its own, trained from scratch. Groups are re-weighted, so that a reader does not read the target in place of
an attribute. Of what is not intervened on a second net is trained that sees shapes alone (:func:`cfaug.stages.shapes.shapes`), and the better one is kept:
where colours are the shortcut, a net that sees them needs examples of every cell, and there are few. They are never the oracles that
``cfaug evaluate`` judges with.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, load_images
from cfaug.offline.gate import Candidates, Floats
from cfaug.stages.attribute_classifiers import settings_of
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.shapes import ShapeNet, inverted, shapes
from cfaug.train import TensorImages, train_classifier
from cfaug.train.features import FeatureStore
from cfaug.train.heads import PENALTIES, Weighted, fit_logistic
from cfaug.train.method_data import group_codes
from cfaug.train.models import as_input, build_model
from cfaug.train.objectives import group_weights
from cfaug.train.validation import outputs

Folds = npt.NDArray[np.int64]


def fold_count(recipe: Recipe) -> int:
    """How many folds the readers of a recipe have."""
    return recipe.gate.folds or (5 if recipe.train.weights else 2)


def folds_of(keys: Sequence[str], folds: int) -> Folds:
    """(N,) the fold of each source key."""
    return np.array([zlib.crc32(key.encode("utf-8", "surrogatepass")) % folds for key in keys], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features (B, D) of candidates, by a frozen net."""

    net: nn.Module

    def __call__(self, seen: Candidates) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self.net.embed(seen.once(_batch, _batch)).float()  # type: ignore[operator]
        return found


class Reader(Protocol):
    """Log-probabilities of the values of an attribute, cross-fitted."""

    def __call__(self, seen: Candidates) -> Floats:
        """(B, K) of candidates."""
        ...

    def arrays(self) -> dict[str, Tensor]:
        """Everything that was learned."""
        ...


@dataclass(frozen=True, eq=False)
class HeadReader:
    """Linear heads, one for each fold: weight (F, K, D), bias (F, K)."""

    embedding: Embedding
    weight: Tensor
    bias: Tensor

    def __call__(self, seen: Candidates) -> Floats:
        features = seen.once("features", self.embedding)
        return self.of_features(features, folds_of(seen.sources.keys, len(self.bias)))

    def of_features(self, features: Tensor, folds: Folds) -> Floats:
        """(N, K) log-probabilities; row i by the head of ``folds[i]``."""
        logits = torch.empty(len(features), self.bias.shape[1])
        for fold in np.unique(folds).tolist():
            rows = torch.from_numpy(np.flatnonzero(folds == fold))
            logits[rows] = features[rows] @ self.weight[fold].T + self.bias[fold]
        return _log_softmax(logits)

    def arrays(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True, eq=False)
class NetReader:
    """Nets, one for each fold."""

    nets: Sequence[nn.Module]

    def __call__(self, seen: Candidates) -> Floats:
        return self.of_images(seen.once(_batch, _batch), folds_of(seen.sources.keys, len(self.nets)))

    def of_images(self, images: Tensor, folds: Folds) -> Floats:
        """(N, K) log-probabilities of images in [-1, 1]."""
        logits: Tensor | None = None
        with torch.inference_mode():
            for fold in np.unique(folds).tolist():
                rows = torch.from_numpy(np.flatnonzero(folds == fold))
                said = self.nets[fold](images[rows]).float()
                logits = torch.empty(len(images), said.shape[1]) if logits is None else logits
                logits[rows] = said
        assert logits is not None
        return _log_softmax(logits)

    def arrays(self) -> dict[str, Tensor]:
        return {
            f"{fold}.{name}": value for fold, net in enumerate(self.nets) for name, value in net.state_dict().items()
        }


@dataclass(frozen=True, eq=False)
class RealImages:
    """Distances to the training images, on features of length 1: what is far from all of them, and what is nearly one of them.

    Mahalanobis' distance says the first (Lee et al., 2018): degraded images leave the directions in which real ones vary. The second is
    the Euclidean one to the nearest image, in principal components.
    """

    embedding: Embedding
    mean: Tensor
    precision: Tensor
    """(D, D) inverse covariance, shrunk (Ledoit and Wolf, 2004)."""
    axes: Tensor
    """(D, d) principal components."""
    bank: Tensor
    """(N, d) the training images in them."""
    keys: Sequence[str]

    def distance(self, seen: Candidates) -> Floats:
        """(B,) Mahalanobis' distances."""
        return self.far(seen.once("features", self.embedding))

    def nearest(self, seen: Candidates) -> Floats:
        """(B,) distances to the nearest training image that is not the source."""
        return self.near(seen.once("features", self.embedding), seen.sources.keys)

    def far(self, features: Tensor) -> Floats:
        """Mahalanobis' distances (N,) of features (N, D)."""
        centred = nn.functional.normalize(features) - self.mean
        return ((centred @ self.precision) * centred).sum(1).clamp(min=0).sqrt().double().numpy()

    def near(self, features: Tensor, sources: Sequence[str]) -> Floats:
        """Distances (N,) to the nearest training image that is not the source."""
        distances = torch.cdist((nn.functional.normalize(features) - self.mean) @ self.axes, self.bank)
        for row, key in enumerate(sources):
            if key in self._place:
                distances[row, self._place[key]] = torch.inf
        return distances.min(dim=1).values.double().numpy()

    @cached_property
    def _place(self) -> Mapping[str, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def arrays(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "precision": self.precision, "axes": self.axes, "bank": self.bank}


@dataclass(frozen=True)
class Learned:
    """Readers by attribute, and the cross-fitted log-probabilities (N, K) of the training images.

    ``real`` is None without pretrained weights where the target has no reader, whose features its distances would be taken in;
    ``features`` (N, D) are those of the training images. ``blind``: the attributes whose readers see shapes alone.
    """

    readers: Mapping[str, Reader]
    scores: Mapping[str, Floats]
    real: RealImages | None
    features: Tensor | None = None
    blind: Sequence[str] = ()


def learn_readers(
    recipe: Recipe, inputs: Inputs, names: Sequence[str], store: FeatureStore | None, progress: bool
) -> Learned:
    """Readers of the attributes ``names`` (categorical ones), on frozen features where there is a store of them."""
    train, folds = inputs.train, folds_of([str(key) for key in inputs.train.table.index], fold_count(recipe))
    groups = torch.from_numpy(group_codes(train.table, inputs.grouper, "each"))
    if store is None:
        return _nets(recipe, inputs, names, folds, groups, progress)
    features = store.of_dataset(train)
    embedding = Embedding(store.model)
    weights = group_weights(groups) * len(groups)
    readers: dict[str, Reader] = {}
    scores = {}
    for name in names:
        readers[name], scores[name] = _heads(train, name, embedding, features, weights, folds)
    return Learned(readers, scores, _real(embedding, features, train, folds), features)


def _heads(
    train: AttributeDataset, name: str, embedding: Embedding, features: Tensor, weights: Tensor, folds: Folds
) -> tuple[HeadReader, Floats]:
    """The heads of the penalty whose cross-fitted log-likelihood is best, every group counting the same."""
    by_fold = []
    for fold in range(folds.max() + 1):
        rows, codes = _known(train, name, folds != fold)
        data = Weighted(features[rows], codes, weights[rows])
        by_fold.append(fit_logistic(data, len(train.schema[name].categories), PENALTIES[:4]))
    rows, codes = _known(train, name, folds >= 0)
    found = []
    for heads in zip(*by_fold):
        reader = HeadReader(embedding, torch.stack([w for _, w, _ in heads]), torch.stack([b for _, _, b in heads]))
        scores = reader.of_features(features, folds)
        likelihood = float(np.average(scores[rows.numpy(), codes.numpy()], weights=weights[rows].numpy()))
        found.append((likelihood, reader, scores))
    _, reader, scores = max(found, key=lambda one: one[0])
    return reader, scores


def _nets(
    recipe: Recipe, inputs: Inputs, names: Sequence[str], folds: Folds, groups: Tensor, progress: bool
) -> Learned:
    train = inputs.train
    images = load_images(train, range(len(train)), progress=False)
    balance = group_weights(groups).numpy()
    intervened = recipe.plan.attributes or inputs.schema.spurious
    readers: dict[str, NetReader] = {}
    scores, blind = {}, []
    for name in names:
        readers[name], scores[name] = _net(recipe, train, name, images, folds, groups, progress, False)
        if name in intervened or images.shape[1] == 1:
            continue
        reader, said = _net(recipe, train, name, images, folds, groups, progress, True)
        if _right(train, name, said, balance) > _right(train, name, scores[name], balance):
            readers[name], scores[name] = reader, said
            blind.append(name)
    if inputs.target not in readers:
        return Learned(readers, scores, None)
    embedding = Embedding(readers[inputs.target].nets[0])
    features = outputs(embedding.net.embed, embedding.net, images, 500).float()  # type: ignore[arg-type]
    return Learned(readers, scores, _real(embedding, features, train, folds), features, blind)


def _net(
    recipe: Recipe, train: AttributeDataset, name: str, images: Tensor, folds: Folds, groups: Tensor, progress: bool, blind: bool
) -> tuple[NetReader, Floats]:  # fmt: skip
    """Nets of all folds. What sees no colours needs no balance of colours: rare groups, shown often, are learned by heart."""
    settings = replace(settings_of(recipe), model="small_cnn", weights=None, selection="last", method_settings={})
    method = "erm" if blind else "group_resampling"
    pool = torch.cat([shapes(part) for part in torch.split(images, 2000)]) if blind else images
    nets = []
    for fold in range(folds.max() + 1):
        rows, codes = _known(train, name, folds != fold)
        negatives = partial(inverted, generator=torch.Generator().manual_seed(recipe.seed + fold))
        source = TensorImages(pool[rows], codes, groups[rows], negatives if blind else None)
        trained = train_classifier(
            method, source, None, settings, recipe.seed, train.schema[name].categories, progress=progress
        )
        net = ShapeNet(trained.model) if blind else trained.model
        nets.append(net.eval().requires_grad_(False))
    reader = NetReader(nets)
    said = [reader.of_images(as_input(images[i : i + 2000]), folds[i : i + 2000]) for i in range(0, len(images), 2000)]
    return reader, np.concatenate(said)


def _right(train: AttributeDataset, name: str, scores: Floats, weights: npt.NDArray[np.float32]) -> float:
    """The share of training images that are read right, every group counting the same."""
    rows, codes = _known(train, name, np.ones(len(train), dtype=bool))
    return float(np.average(scores[rows.numpy()].argmax(1) == codes.numpy(), weights=weights[rows.numpy()]))


def blank_net(inputs: Inputs, name: str, blind: bool) -> nn.Module:
    """A net as :func:`learn_readers` trains for an attribute, not trained."""
    height, width, channels = inputs.train.image(0).shape
    classes = len(inputs.schema[name].categories)
    net = build_model("small_cnn", 1 if blind else channels, (height, width), classes, 0)
    return (ShapeNet(net) if blind else net).eval()


MOST = 20_000
"""Training images, at most, that the directions are learned from."""
COMPONENTS = 64
"""Axes in which distances are measured: enough to tell images apart, and a tenth of a large net's features."""


def _real(embedding: Embedding, features: Tensor, train: AttributeDataset, folds: Folds) -> RealImages:
    """Directions from all folds but the first, whose images say how far real ones are from them."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    units = nn.functional.normalize(features).numpy()
    seen = units[folds != 0][:MOST]
    found = PCA(min(COMPONENTS, *seen.shape), svd_solver="randomized", random_state=0).fit(seen)
    mean, axes = (torch.from_numpy(one.astype(np.float32).copy()) for one in (found.mean_, found.components_.T))
    precision = torch.from_numpy(LedoitWolf().fit(seen).precision_.astype(np.float32))
    bank = (torch.from_numpy(units) - mean) @ axes
    return RealImages(embedding, mean, precision, axes, bank, [str(key) for key in train.table.index])


def _known(train: AttributeDataset, name: str, wanted: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Rows that are wanted and have a value, and their codes."""
    rows = np.flatnonzero(wanted & train.table[name].notna().to_numpy())
    return torch.from_numpy(rows), torch.from_numpy(np.asarray(train.schema.index(name, train.table[name].iloc[rows])))


def _batch(seen: Candidates) -> Tensor:
    """The candidates as a net takes them, float (B, C, H, W) in [-1, 1]."""
    return as_input(torch.from_numpy(np.stack(seen.images)).permute(0, 3, 1, 2))


def _log_softmax(logits: Tensor) -> Floats:
    return logits.double().log_softmax(1).numpy()
