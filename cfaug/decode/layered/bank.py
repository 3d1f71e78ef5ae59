"""The bank: one layer of many training images, filled where the other layer hid it, found by the values of its attributes.

A donor for a source is drawn by the plan's seed among the bank's images with the wanted values. Which of the drawn candidates is
taken is a choice: any (``random``), the one whose hole the source's object covers best (``cover``), or the one whose light is
nearest to the source's (``light``). The target is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels
from cfaug.decode.layered.compositing import SURE
from cfaug.errors import CfaugError

Partner = Literal["random", "cover", "light"]
PARTNERS: tuple[str, ...] = get_args(Partner)

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
