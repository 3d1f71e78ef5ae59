"""Whether a base shows at each index the image that was there when it was wrapped.

Else the counterfactual of one image would stand under the label of another. Data sets that name their images (a path, a
key) are asked for the name of each that is swapped (:func:`cfaug.learn.inner.mark_of`); of others a few images are looked
at, once an epoch in every process.
"""

from __future__ import annotations

import numpy as np

from cfaug.errors import DataError, UsageError
from cfaug.learn.bases import Swappable
from cfaug.learn.bases.base import spread, undrawn
from cfaug.learn.matching import Matches
from cfaug.learn.pictures import recognisable

LOOKED_AT = 8  # images of those that have samples: a permutation leaves none of a thousand in place, mostly


def refuse_moved(base: Swappable, matches: Matches) -> None:
    """DataError when one of LOOKED_AT images is not the source of its samples. No generator is advanced.

    Not noticed: two images that changed places, and data sets which show no untransformed pixels.
    """
    matched = np.flatnonzero(matches.total)
    with undrawn():
        for i in matched[spread(len(matched), LOOKED_AT)].tolist():
            try:
                image = recognisable(base.picture(i))
            except UsageError:
                return
            if image is None or not matches.reader.confirms(int(matches.rows[matches.start[i]]), image):
                raise reordered(i)


def reordered(i: int) -> DataError:
    """The error of a base whose image i is another than when it was wrapped."""
    return DataError(
        f"base: expected at index {i} the image that was there when it was wrapped, came another; it was reordered since: "
        "wrap it again"
    )
