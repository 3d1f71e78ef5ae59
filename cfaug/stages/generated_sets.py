"""The same sources as real images, as reconstructions and as counterfactuals; in memory, as uint8.

The losses and the leak probes compare these kinds, so everything else is equal: source keys, interventions, seeds and the
quantisation of the shards. Every spurious attribute is drawn evenly within each target class, as the strategy ``balance``
does, hence independently of the target and of the factual value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfaug.causal import Intervention, do
from cfaug.data import AttributeDataset, Schema, load_images
from cfaug.errors import CfaugError, DataError, generating
from cfaug.judge.axioms import Model
from cfaug.offline import ShardReader, balance_groups
from cfaug.stages.attribute_classifiers import quantised
from cfaug.train.models import as_input


@dataclass(frozen=True)
class Pool:
    """N sources of one data set, one row per source; images are uint8 (N, C, H, W)."""

    table: pd.DataFrame
    """Factual attributes, indexed by source key."""
    factual: Tensor
    reconstruction: Tensor
    """The images after a null intervention."""
    counterfactual: Tensor
    masks: Tensor | None = None
    """Of the objects, float (N, 1, H, W) in [0, 1], for a model that needs them."""

    @property
    def sources(self) -> list[str]:
        """The source keys."""
        return [str(key) for key in self.table.index]


def balanced_acts(dataset: AttributeDataset, most: int, seed: int) -> dict[str, Intervention]:
    """Source key -> an intervention on all spurious attributes, for at most ``most`` sources that are drawn at random."""
    rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(dataset))[:most])
    plan = balance_groups(dataset.table.iloc[rows], dataset.schema, seed=seed)
    found = {row.source_key: row.do for row in plan}
    return {key: found[key] for key in map(str, dataset.table.index[rows])}


def exchanged_acts(table: pd.DataFrame, schema: Schema, seed: int) -> dict[str, Intervention]:
    """Source key -> the spurious attributes of a different source of the same class.

    The counterfactuals then keep the joint distribution of the target and the spurious attributes exactly, confounding
    included, so whatever tells them from reconstructions is a mark of generation and not a shift of attributes. A source
    that lacks a value exchanges the other values with a source that lacks the same one.
    """
    generator = np.random.default_rng([seed, 6])
    table = schema.canonical(table)
    donors = np.arange(len(table))
    lacking = table[list(schema.spurious)].isna().astype(str).agg("".join, axis=1)
    classes = pd.factorize(table[str(schema.target)] + lacking)[0]
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        donors[members] = generator.permutation(members)
    return {
        str(key): do({n: value for n in schema.spurious if not pd.isna(value := table.iloc[donor][n])})
        for key, donor in zip(table.index, donors, strict=True)
    }


def make_pool(
    model: Model, dataset: AttributeDataset, acts: Mapping[str, Intervention], seed: int, batch: int, progress: bool
) -> Pool:
    """Reconstructions and counterfactuals of the sources that ``acts`` names, in its order.

    Raises:
        DataError: the data set does not have a source.
        CfaugError: the model made pixels that are not finite, or the memory does not suffice for ``batch`` rows.
    """
    position = {dataset.key(i): i for i in range(len(dataset))}
    if missing := [key for key in acts if key not in position]:
        raise DataError(
            f"expected source {missing[0]!r} in both the confounded and the unconfounded images, but it is in one only; "
            "a source must keep its keys when it is made unconfounded"
        )
    rows = [position[key] for key in acts]
    factual = load_images(dataset, rows, progress=False)
    table = dataset.table.iloc[rows]
    masks = masks_of(model, dataset, rows)
    interventions = list(acts.values())
    null: list[Tensor] = []
    real: list[Tensor] = []
    steps = range(0, len(rows), batch)
    for start in tqdm(steps, desc="generate to judge", unit="batch", disable=not progress, leave=False, delay=2):
        part = slice(start, start + batch)
        seeds = [seed + start + i for i in range(len(factual[part]))]
        # one abduction for both, so that a reconstruction and its counterfactual differ only in the intervention
        with generating(batch, len(seeds)):
            more = {} if masks is None else {"masks": masks[part]}
            noise = model.abduct(as_input(factual[part]), table.iloc[part], seed=seeds, **more)
            null.append(_made(model, noise, [do()] * len(seeds), table.index[start]))
            real.append(_made(model, noise, interventions[part], table.index[start]))
    return Pool(table, factual, torch.cat(null), torch.cat(real), masks)


def pool_of_shards(dataset: AttributeDataset, shards: ShardReader, most: int) -> Pool:
    """The first counterfactual of each of at most ``most`` sources that the shards have one of; a null intervention is the source itself."""
    place = {dataset.key(i): i for i in range(len(dataset))}
    first: dict[str, int] = {}
    for i in np.flatnonzero(~shards.nulls).tolist():
        first.setdefault(shards.index[i].source_key, i)
    first = dict(list(first.items())[:most])
    rows = [place[key] for key in first]
    factual = load_images(dataset, rows, progress=False)
    made = np.stack([shards.image(i) for i in first.values()])
    return Pool(dataset.table.iloc[rows], factual, factual, torch.from_numpy(made).permute(0, 3, 1, 2).contiguous())


def masks_of(model: Model, dataset: AttributeDataset, rows: Sequence[int]) -> Tensor | None:
    """(N, 1, H, W) in [0, 1], 1 on the object, for a model that needs masks; else None."""
    needed = getattr(model, "capabilities", None)
    if needed is None or not needed.needs_masks:
        return None
    return torch.stack([torch.from_numpy(np.asarray(dataset.mask(i))) for i in rows])[:, None].float() / 255


def _made(model: Model, noise: object, acts: Sequence[Intervention], first: str) -> Tensor:
    images, _ = model.act(acts).predict(noise)
    if not bool(torch.isfinite(images).all()):
        raise CfaugError(
            f"the model made non-finite pixels in the batch of source {first!r}: fit it again, or check its sampler"
        )
    return quantised(images)
