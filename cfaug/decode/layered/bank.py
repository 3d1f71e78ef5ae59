"""The bank: one layer of many training images, filled where the other layer hid it, found by the values of its attributes.

A donor for a source is drawn by the plan's seed among the bank's images with the wanted values. Which of the drawn candidates is
taken is a choice: any (``random``), the one whose hole the source's object covers best (``cover``), or the one whose light is
nearest to the source's (``light``). The target is never looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from cfaug.data import AttributeDataset
from cfaug.data.images import Pixels
from cfaug.decode.layered import compositing
from cfaug.decode.layered.compositing import SURE
from cfaug.decode.layered.mask_sources import EMPTY
from cfaug.decode.layered.recolour import object_statistics
from cfaug.decoder_config import CompositeConfig, Partner
from cfaug.errors import CfaugError, DataError

MOST_HIDDEN = 0.95
"""An image in which more than this share of a layer is hidden lends none."""
_DONOR = 0x444F4E  # sets these draws apart from others with the row's seed


@dataclass(frozen=True, eq=False)
class Bank:
    """One layer of N training images.

    Attributes:
        images: uint8 (N, H, W, C), the layer alone: a background without its object, or an object's surface without its outline.
        holes: bool (N, H, W), where it was filled.
        light: float32 (N,), mean level of the layer's own pixels in [0, 255].
        colours: float32 (N, 2, C), mean and deviation of the object's colours; zeros for backgrounds.
        keys: N source keys.
        values: attribute of the layer -> N values.
    """

    images: Pixels
    holes: npt.NDArray[np.bool_]
    light: npt.NDArray[np.float32]
    colours: npt.NDArray[np.float32]
    keys: npt.NDArray[np.object_]
    values: Mapping[str, npt.NDArray[np.object_]]

    def with_values(self, wanted: Mapping[str, object]) -> npt.NDArray[np.int64]:
        """The places of the images that have these values. CfaugError where there is none."""
        found = np.ones(len(self.keys), bool)
        for name, value in wanted.items():
            found &= self.values[name] == value
        if not found.any():
            said = ", ".join(f"{name}={value}" for name, value in wanted.items())
            raise CfaugError(
                f"expected a training image with {said} to take a layer from, got none; plan only values that training images "
                "show together (plan.attributes, plan.joint)"
            )
        return np.flatnonzero(found)

    def donor(
        self, wanted: Mapping[str, object], key: str, mask: Pixels, light: float, partner: Partner, most: int, seed: int
    ) -> int:
        """The place of the donor for the source ``key``, whose object is ``mask``: not the source itself, unless it is the only one."""
        places = self.with_values(wanted)
        others = places[self.keys[places] != key]
        places = others if len(others) else places
        rng = np.random.default_rng([seed, _DONOR])
        drawn = rng.choice(places, min(most if partner != "random" else 1, len(places)), replace=False)
        if len(drawn) == 1:
            return int(drawn[0])
        if partner == "light":
            return int(drawn[np.argmin(np.abs(self.light[drawn] - light))])
        shown = (self.holes[drawn] & (mask < SURE)).reshape(len(drawn), -1).sum(1)
        return int(drawn[np.argmin(shown)])


def make_bank(
    layer: str,
    own: Sequence[str],
    dataset: AttributeDataset,
    table: pd.DataFrame,
    composite: CompositeConfig,
    seed: int,
    progress: bool,
) -> Bank:
    """The bank of a layer, ``background`` or ``foreground``, whose attributes are ``own``; ``table``: canonical, of the data set.

    At most ``composite.bank`` images, drawn by ``seed``, for each combination of values.

    Raises:
        DataError: no masks, images of different sizes, or no image with a value whose mask leaves the layer to be seen.
    """
    images, holes, light, colours, kept = [], [], [], [], []
    shape = dataset.image(0).shape
    for i in tqdm(
        _chosen(table, own, seed, composite.bank), desc=layer, unit="img", disable=not progress, delay=2, leave=False
    ):
        image, mask = dataset.image(i), dataset.mask(i)
        if mask is None:
            raise DataError(
                f"{dataset.key(i)}: expected a mask of its object, got none; name the masks in data.masks, or say how to make them in "
                "decoder.mask"
            )
        if image.shape != shape:
            raise DataError(
                f"{dataset.key(i)}: expected {shape[1]}x{shape[0]} px as in {dataset.key(0)}, got {image.shape[1]}x{image.shape[0]}; "
                "give a working size (data.size)"
            )
        hole = compositing.hole_of(mask, composite.margin) if layer == "background" else mask < SURE
        if (
            hole.mean() > MOST_HIDDEN or (mask > 127).mean() < EMPTY
        ):  # hidden, or the object was not found and is still in it
            continue
        images.append(compositing.FILLS[composite.fill](image, hole))
        colours.append(
            object_statistics(image, mask) if layer == "foreground" else np.zeros((2, image.shape[2]), np.float32)
        )
        holes.append(hole)
        light.append(image[~hole].mean())
        kept.append(i)
    wanted = set(table[list(own)].dropna().itertuples(index=False, name=None))
    shown = set(table[list(own)].iloc[kept].itertuples(index=False, name=None))
    if absent := sorted(", ".join(map(str, values)) for values in wanted - shown):
        raise DataError(
            f"expected a training image whose {layer} can be seen for each value of {', '.join(own)}, got none for {absent[0]}: its "
            "masks cover all or nothing; look at the masks (decoder.mask)"
        )
    return Bank(
        np.stack(images),
        np.stack(holes),
        np.array(light, np.float32),
        np.stack(colours),
        np.array([dataset.key(i) for i in kept], dtype=object),
        {name: table[name].iloc[kept].to_numpy(dtype=object) for name in own},
    )


def _chosen(table: pd.DataFrame, own: Sequence[str], seed: int, most: int) -> list[int]:
    known = np.flatnonzero(table[list(own)].notna().all(axis=1).to_numpy())
    cells = table[list(own)].iloc[known].astype(str).agg("\0".join, axis=1).to_numpy()
    taken: Counter[str] = Counter()
    rows = []
    for place in np.random.default_rng([seed, 0x42414E]).permutation(len(known)).tolist():
        if taken[cells[place]] < most:
            taken[cells[place]] += 1
            rows.append(int(known[place]))
    return sorted(rows)
