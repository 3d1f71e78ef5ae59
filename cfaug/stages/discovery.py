"""Causal discovery on a recipe's training images: what their attributes suggest, and a graph to paste.

Where labels are partial, the question is asked twice. The recipe's method uses the rows that have the values; beside it,
a reader of each such attribute is trained on the labelled images, fills in the others, and DAGMA learns a graph from the
whole table. Two answers that agree come from different rows and different assumptions. What the readers get wrong
is noise in the filled columns and weakens their edges; and a reader that shares a shortcut draws an edge from it, so its
accuracy on labelled images it has not seen, and the attribute it was trained beside, stand in the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal import CausalGraph, refuse_if_ancestor
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.discovery import Discovery
from cfaug.causal.discover.discovery import discover as discover_in
from cfaug.config import Recipe
from cfaug.data import AttributeDataset, Schema, load_images
from cfaug.errors import DataError, UsageError
from cfaug.stages.inputs import Inputs

log = logging.getLogger(__name__)

LEVELS = 8
"""Classes into which a continuous attribute is cut for its reader; a filled value is the mean of its class."""
FEWEST_LABELLED = 20


@dataclass(frozen=True)
class Findings:
    """The answer of the recipe's method; where labels are partial also DAGMA's on the filled table, and how they compare."""

    discovery: Discovery
    graph: CausalGraph
    filled: Discovery | None = None
    readers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attribute -> labelled, filled (rows), held_out (rows), accuracy (share of them in the right class)."""
    comparison: Mapping[str, list[str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> list[str]:
        """Lines for people, the line to paste last."""
        lines = list(self.discovery.text)
        if self.filled is not None:
            lines += ["", "with the missing values read from the images:"]
            lines += [
                f"  {name}: {r['filled']} rows filled; {r['accuracy']:.0%} of {r['held_out']} held-out images right"
                for name, r in self.readers.items()
            ]
            lines += list(self.filled.text)
            lines += [f"  {kind}: {', '.join(found) or 'none'}" for kind, found in self.comparison.items()]
        return [*lines, *self.warnings, "", f'graph: "{self.graph}"']

    def to_json(self) -> dict[str, Any]:
        """Plain data: the discovery's, and ``graph``, ``filled``, ``readers``, ``comparison``, ``warnings``."""
        return self.discovery.to_json() | {
            "graph": str(self.graph),
            "filled": None if self.filled is None else self.filled.to_json(),
            "readers": {name: dict(row) for name, row in self.readers.items()},
            "comparison": dict(self.comparison),
            "warnings": list(self.warnings),
            "text": self.text,
        }


def discover(recipe: Recipe, inputs: Inputs, progress: bool = False) -> Findings:
    """Ask the training table of ``inputs`` for edges between the attributes, as ``recipe.discover`` says.

    Raises:
        UsageError, DataError: as :func:`cfaug.causal.discover.discovery.discover`.
    """
    config, table, schema = recipe.discover, inputs.train.table, inputs.schema
    background = Background.read(config.forbidden, config.required, config.tiers)

    def ask(rows: pd.DataFrame, method: str, known: Background) -> Discovery:
        return discover_in(rows, schema, method, config.alpha, known, config.bootstraps, recipe.seed, progress)

    found = ask(table, config.method, background)
    graph = found.graph(inputs.graph.parents("image"))
    filled: Discovery | None = None
    readers: dict[str, dict[str, Any]] = {}
    comparison: dict[str, list[str]] = {}
    if schema.canonical(table).isna().any(axis=None):
        whole, readers = fill(recipe, inputs.train, progress)
        filled = ask(whole, "dagma", background)
        comparison = compare(found, filled)
    return Findings(found, graph, filled, readers, comparison, _warnings(graph, schema))


def _warnings(graph: CausalGraph, schema: Schema) -> tuple[str, ...]:
    try:
        refuse_if_ancestor(graph, str(schema.target), schema.spurious)
    except UsageError as error:
        return (f"a run would refuse this graph: {error}",)
    return ()


def compare(one: Discovery, other: Discovery) -> dict[str, list[str]]:
    """Which edges two discoveries share: texts in "common", "only <method>" for each, and "reversed" (the first's text)."""
    left, right = ({frozenset((e.a, e.b)): e for e in d.edges} for d in (one, other))
    shared = left.keys() & right.keys()
    turned = {p for p in shared if (left[p].a, left[p].b) != (right[p].a, right[p].b) and _fixed(left[p].kind)}

    def texts(pairs: set[frozenset[str]], edges: Mapping[frozenset[str], Any]) -> list[str]:
        return sorted(str(edges[pair]) for pair in pairs)

    return {
        "common": texts(shared - turned, left),
        "reversed": texts(turned, left),
        f"only {one.method}": texts(left.keys() - shared, left),
        f"only {other.method}, values filled": texts(right.keys() - shared, right),
    }


def _fixed(kind: str) -> bool:
    return kind in ("->", "o->")


def fill(
    recipe: Recipe, dataset: AttributeDataset, progress: bool = False
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """The table with its missing values read from the images, and what each reader was worth.

    A reader is the recipe's classifier, trained on four fifths of the images that have the value and judged on the
    rest. A continuous attribute is cut at its quantiles into ``LEVELS`` classes.

    Raises:
        DataError: an attribute with too few labelled images to train a reader and judge it.
    """
    import torch

    from cfaug.stages.attribute_classifiers import settings_of
    from cfaug.train import TensorImages, train_classifier

    table = dataset.schema.canonical(dataset.table)
    holes = [name for name in dataset.schema.names if table[name].isna().any()]
    images = load_images(dataset, progress=False)
    report: dict[str, dict[str, Any]] = {}
    for name in holes:
        here = np.flatnonzero(table[name].notna())
        if len(here) < FEWEST_LABELLED:
            raise DataError(
                f"column {name!r}: expected {FEWEST_LABELLED} labelled training images to read the others by, got {len(here)}; "
                "label more, or leave the attribute out"
            )
        codes, values = _classes(dataset.schema, name, table[name].iloc[here])
        order = np.random.default_rng([recipe.seed, 7]).permutation(len(here))
        held, taught = order[: len(here) // 5], order[len(here) // 5 :]
        log.info("discover: reading %s from %d labelled images", name, len(here))
        reader = train_classifier(
            "erm",
            TensorImages(images[torch.from_numpy(here[taught])], torch.from_numpy(codes[taught])),
            None,
            settings_of(recipe),
            seed=recipe.seed,
            classes=[str(v) for v in values],
            progress=progress,
        )
        right = reader.predict(images[torch.from_numpy(here[held])]).numpy() == codes[held]
        missing = np.flatnonzero(table[name].isna())
        guesses = reader.predict(images[torch.from_numpy(missing)]).numpy()
        column = list(table[name])
        for row, guess in zip(missing, guesses, strict=True):
            column[row] = values[guess]
        table[name] = pd.Series(column, index=table.index, dtype=table[name].dtype)
        report[name] = {
            "labelled": len(here),
            "filled": len(missing),
            "held_out": len(held),
            "accuracy": float(right.mean()),
        }
    return table, report


def _classes(schema: Schema, name: str, column: pd.Series) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Class codes of a labelled column, and the value that stands for each class."""
    if schema[name].kind != "continuous":
        own = Schema([schema[name]]).fit(column.to_frame())
        return own.index(name, column), list(own[name].categories)
    numbers = column.to_numpy(dtype=np.float64)
    cuts = np.unique(np.quantile(numbers, np.arange(1, LEVELS) / LEVELS))
    codes = np.searchsorted(cuts, numbers, side="right")
    present, codes = np.unique(codes, return_inverse=True)
    return codes.astype(np.int64), [float(numbers[codes == k].mean()) for k in range(len(present))]
