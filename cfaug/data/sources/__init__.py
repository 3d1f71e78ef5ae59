"""Data sets by name: what a recipe's ``data.source`` may say, and how each is opened.

| module | what |
|---|---|
| ``folder`` | a directory of images with metadata.csv |
| ``published`` | benchmarks as they lie on disk: Waterbirds, CelebA, UrbanCars, MetaShift, WILDS and SpuCo |
| ``hugging_face`` | a data set of the Hugging Face library |
| ``web_dataset`` | shards in WebDataset's format |
| ``stored_images`` | what these have in common: decoding, the working size, the check of all images |
| ``digits`` | scikit-learn's digits in colours |
| ``mnist`` | MNIST in one colour, and in two |
| ``wildlife`` | MNIST in textures |
| ``morpho`` | Morpho-MNIST, an SCM with known mechanisms |
| ``colouring`` | the confounding common to the coloured digits |

The registry holds names, never an import path from a configuration file.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data.datasets import ArrayDataset, AttributeDataset
from cfaug.data.images import Fit
from cfaug.data.schema import Schema
from cfaug.data.sources.published import LAYOUTS
from cfaug.data.sources.stored_images import Size
from cfaug.errors import UsageError, near

Measure = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]
"""(N, H, W, C) uint8 images -> (N,) values of one attribute, in its unit, read from the pixels alone."""


@dataclass(frozen=True)
class Source:
    """Where a named source is made (``module:function``, loaded on use) and whether it knows its own confounding.

    ``measures`` names (``module:CONSTANT``) the attributes that can be read from pixels; empty: none can. ``stored``: the user's
    own images, whose attributes are columns of the user's table.
    """

    maker: str
    can_unconfound: bool = False
    measures: str = ""
    stored: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source("cfaug.data.sources.digits:digits", True),
    "double_colored_mnist": Source("cfaug.data.sources.mnist:double_colored_mnist", True),
    "colored_mnist": Source("cfaug.data.sources.mnist:colored_mnist", True),
    "wildlife_mnist": Source("cfaug.data.sources.wildlife:wildlife_mnist", True),
    "morpho_mnist": Source("cfaug.data.sources.morpho:morpho_mnist", False, "cfaug.data.sources.morpho:MEASURES"),
    "folder": Source("cfaug.data.sources.folder:FolderDataset", stored=True),
    "huggingface": Source("cfaug.data.sources.hugging_face:HuggingFaceImages", stored=True),
    "webdataset": Source("cfaug.data.sources.web_dataset:WebDatasetImages", stored=True),
    **{name: Source("cfaug.data.sources.folder:FolderDataset", stored=True) for name in LAYOUTS},
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UsageError(f"expected a data source among {', '.join(SOURCES)}, got {name!r}; {near(name, SOURCES)}")
    return SOURCES[name]


def can_unconfound(source: str) -> bool:
    """Whether the source can draw its attributes independently of the target (the oracle's training set)."""
    return _source(source).can_unconfound


def measures_of(source: str) -> dict[str, Measure]:
    """The attributes of this source that a formula reads from pixels, each with its formula; {} when there are none.

    Each maps uint8 images (N, H, W, C) to float64 (N,) in the attribute's unit. UsageError for an unknown source.
    """
    entry = _source(source)
    if not entry.measures:
        return {}
    module, constant = entry.measures.split(":")
    return dict(getattr(importlib.import_module(module), constant))


def open_source(
    source: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    target: str | None = None,
    spurious: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    values: Mapping[str, Sequence[str]] | None = None,
    attributes: Sequence[str] = (),
    schema: Schema | None = None,
    seed: int = 0,
    confounded: bool = True,
    size: Size | None = None,
    fit: Fit = "crop",
    masks: str | None = None,
    **options: Any,
) -> AttributeDataset:
    """Open one split of a named source.

    A generated source (digits, the MNIST family) has its own attributes and values: ``target`` and
    ``spurious`` default to its own and may select among them; ``seed`` draws its other attributes, and ``options``
    are its own (``rho``, ...). Where ``can_unconfound`` says so, ``confounded=False`` gives the same source images with
    attributes drawn independently of the target.
    For stored images (a folder, Hugging Face, WebDataset, a published benchmark) attributes come from their table, ``size`` and
    ``fit`` bring them to a working size, ``masks`` names a folder's masks, and ``seed`` means nothing. Raises UsageError for an
    unknown source, option or attribute, with the near names.
    """
    entry = _source(source)
    module, function = entry.maker.split(":")
    maker = getattr(importlib.import_module(module), function)
    if not confounded and not entry.can_unconfound:
        raise UsageError(f"a {source} source cannot be made unconfounded, as its images are given; drop the oracle")
    if entry.stored:
        if options:
            raise UsageError(f"source {source!r} has no option {next(iter(options))!r}; it takes none")
        if root is None:
            raise UsageError(f"source {source!r} needs a root; give the directory that holds the images")
        more: dict[str, Any] = {"layout": source} if source in LAYOUTS else {}
        if masks is not None:
            if source in ("huggingface", "webdataset"):
                raise UsageError(
                    f"source {source!r} has no masks; put images and masks into a folder, or remove data.masks"
                )
            more["masks"] = masks
        opened: AttributeDataset = maker(
            root, split, target, spurious or (), kinds, values, schema, attributes, size=size, fit=fit, **more
        )
        return opened
    if size is not None or masks is not None:
        raise UsageError(
            f"source {source!r} has a size of its own and no masks; remove data.{'masks' if size is None else 'size'}"
        )
    known = [p for p in inspect.signature(maker).parameters if p not in ("root", "split", "seed", "confounded")]
    for option in options:
        if option not in known:
            raise UsageError(f"source {source!r} has no option {option!r}; {near(option, known)}")
    if entry.can_unconfound:
        options["confounded"] = confounded
    dataset: ArrayDataset = maker(root=root, split=split, seed=seed, **options)
    own = dataset.schema
    for name in (*(kinds or {}), *(values or {}), *attributes):
        if own[name].kind != (kinds or {}).get(name, own[name].kind):
            raise UsageError(f"source {source!r}: attribute {name!r} is {own[name].kind}, not {(kinds or {})[name]}")
        if values and name in values and tuple(map(str, values[name])) != own[name].values:
            raise UsageError(f"source {source!r} brings its own values of {name!r}; remove values.{name}")
    if schema is None and (target is not None or spurious is not None):
        chosen = own.target if target is None else target
        schema = Schema(own, chosen, [s for s in own.spurious if s != chosen] if spurious is None else spurious)
    return (
        dataset if schema is None else ArrayDataset(dataset.images, dataset.table, schema, split, masks=dataset.masks)
    )
