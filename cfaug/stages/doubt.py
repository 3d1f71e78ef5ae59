"""How doubtful samples of a run are by its own gate: what a criterion let pass with the least margin comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from cfaug.data.images import Pixels, to_float
from cfaug.data.loading import load_images
from cfaug.data.micro_batch import Sources
from cfaug.decode import CounterfactualModel
from cfaug.offline.gate import CriteriaGate
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import masks_of

Floats = npt.NDArray[np.float64]
_BATCH = 50


def least_margins(
    gate: CriteriaGate, model: CounterfactualModel, inputs: Inputs, records: Sequence[Mapping[str, Any]], images: Sequence[Pixels]
) -> tuple[Floats, list[str]]:  # fmt: skip
    """(N,) the least rank in [0, 1] of each sample's margins, 0 the nearest to rejection, and which criterion it is of.

    Margins of different criteria have different units, so each is ranked among the N samples.
    """
    place = {inputs.sources.key(i): i for i in range(len(inputs.sources))}
    found: dict[str, list[float]] = {}
    for start in range(0, len(records), _BATCH):
        part = range(start, min(start + _BATCH, len(records)))
        wanted = [place[records[k]["source_key"]] for k in part]
        pixels = load_images(inputs.sources, wanted, progress=False)
        table = inputs.sources.table.iloc[wanted].set_axis([records[k]["key"] for k in part])
        sources = Sources(
            to_float(pixels), table, [records[k]["source_key"] for k in part], [records[k]["seed"] for k in part],
            masks_of(model, inputs.sources, wanted),
        )  # fmt: skip
        for name, margins in gate.margins([images[k] for k in part], [dict(records[k]) for k in part], sources).items():
            found.setdefault(name, []).extend(margins.tolist())
    values = {name: np.asarray(margins) for name, margins in found.items()}
    # where one abstains it is the last of all: ranks of NaN would be NaN for everybody
    ranked = np.stack([np.where(np.isnan(one), 1.0, ranks(np.nan_to_num(one, nan=np.inf))) for one in values.values()])
    names = list(values)
    return ranked.min(axis=0), [names[i] for i in ranked.argmin(axis=0)]


def ranks(values: npt.ArrayLike) -> Floats:
    """(N,) from 0 for the least to 1; equal values in their order."""
    found = np.asarray(rankdata(values, method="ordinal"), dtype=np.float64)
    return (found - 1) / max(1, len(found) - 1)
