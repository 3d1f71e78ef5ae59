"""scikit-learn's 1 797 handwritten digits, 8x8, in colours that predict the digit in training and not in test.

    image = (1 - m) background + m foreground,      m = grey / 16        uint8 (8, 8, 3)

The split of the handwritten digits is fixed (stratified, whatever ``seed`` is): 1 200 train, 199 val, 398 test.
Train has one render per digit: foreground and background each equal the class's own colour with probability rho,
else uniform over the ten. Val and test are unconfounded: every digit is rendered ten times, once under each
foreground and once under each background (two random permutations), so inside a digit-by-foreground (or
digit-by-background) group no handwritten digit repeats and n counts distinct handwritten digits. The ten
renders of a digit are not independent across groups.

Data: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; as shipped in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.datasets import SPLITS, ArrayDataset, check_split
from cfaug.data.schema import Attribute, Schema
from cfaug.data.sources.colouring import Codes, correlations, draw_colours

# Bright on dark and no colour in both lists, so that every digit is visible on every background.
FOREGROUNDS = {
    "white": (255, 255, 255),
    "red": (255, 70, 70),
    "lime": (120, 255, 60),
    "yellow": (255, 240, 60),
    "cyan": (70, 245, 255),
    "pink": (255, 150, 205),
    "orange": (255, 165, 40),
    "skyblue": (110, 180, 255),
    "violet": (215, 130, 255),
    "mint": (150, 255, 200),
}
BACKGROUNDS = {
    "black": (0, 0, 0),
    "maroon": (110, 0, 15),
    "forest": (0, 85, 20),
    "navy": (0, 0, 120),
    "purple": (80, 0, 110),
    "teal": (0, 85, 95),
    "brown": (95, 55, 10),
    "olive": (85, 90, 0),
    "slate": (65, 75, 90),
    "plum": (110, 10, 80),
}
SIZES = {"train": 1200, "val": 199, "test": 398}
RENDERS = 10


def schema() -> Schema:
    """digit (target), foreground and background (spurious), all categorical, with their values."""
    return Schema(
        [
            Attribute("digit", values=tuple(map(str, range(10)))),
            Attribute("foreground", values=tuple(FOREGROUNDS)),
            Attribute("background", values=tuple(BACKGROUNDS)),
        ],
        target="digit",
        spurious=["foreground", "background"],
    )


def _split_rows(classes: Codes, split: str) -> Codes:
    """Rows of scikit-learn's data in this split: a fixed permutation, stratified by class, in ascending order."""
    rng = np.random.default_rng(0)
    place = np.empty(len(classes))
    for c in range(10):
        rows = np.flatnonzero(classes == c)
        # each class spread evenly over [0, 1), so any cut of the line takes the same share of every class
        place[rng.permutation(rows)] = (np.arange(len(rows)) + (c + 1) / 11) / len(rows)
    order = np.argsort(place, kind="stable")
    start = sum(SIZES[s] for s in SPLITS[: SPLITS.index(split)])
    return np.sort(order[start : start + SIZES[split]]).astype(np.int64)


def digits(
    split: str = "train",
    *,
    root: object = None,
    rho: float | Mapping[str, float] = 0.9,
    seed: int = 0,
    confounded: bool = True,
) -> ArrayDataset:
    """One split of the coloured digits; keys are "digits-0123-r3" (row of scikit-learn's data, render).

    ``rho`` in [0, 1] is the correlation of the training colours, one number or {"foreground": ..., "background":
    ...}; ``confounded=False`` renders the same training digits in colours drawn independently of the digit. ``seed``
    draws the colours, never the split. ``root`` is ignored: the data ship with scikit-learn.
    """
    check_split(split)
    strength = correlations(rho, ("foreground", "background"), default=0.9)
    from sklearn.datasets import load_digits

    data = load_digits()
    classes = np.asarray(data.target, dtype=np.int64)
    rows = _split_rows(classes, split)
    rng = np.random.default_rng([seed, SPLITS.index(split), int(confounded)])
    if split == "train":
        render = np.zeros(len(rows), dtype=np.int64)
        own = classes[rows]
        fore = draw_colours(own, strength["foreground"] if confounded else 0.0, rng)
        back = draw_colours(own, strength["background"] if confounded else 0.0, rng)
    else:
        rng = np.random.default_rng([seed, SPLITS.index(split)])  # unconfounded either way: one and the same data
        fore = np.concatenate([rng.permutation(RENDERS) for _ in rows])
        back = np.concatenate([rng.permutation(RENDERS) for _ in rows])
        render = np.tile(np.arange(RENDERS), len(rows))
        rows = np.repeat(rows, RENDERS)
    mask = np.asarray(data.images, dtype=np.float64)[rows][..., None] / 16.0
    images = _blend(mask, _palette(FOREGROUNDS)[fore], _palette(BACKGROUNDS)[back])
    table = pd.DataFrame(
        {
            "digit": classes[rows].astype(str).astype(object),
            "foreground": np.array(list(FOREGROUNDS), dtype=object)[fore],
            "background": np.array(list(BACKGROUNDS), dtype=object)[back],
        },
        index=pd.Index([f"digits-{i:04d}-r{r}" for i, r in zip(rows, render)], dtype=object),
    )
    return ArrayDataset(images, table, schema(), split)


def _palette(colours: Mapping[str, tuple[int, int, int]]) -> npt.NDArray[np.float64]:
    return np.array(list(colours.values()), dtype=np.float64)


def _blend(
    mask: npt.NDArray[np.float64], fore: npt.NDArray[np.float64], back: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """(1 - m) background + m foreground; mask (N, H, W, 1) in [0, 1], colours (N, 3) in [0, 255] -> uint8."""
    flat = (1 - mask) * back[:, None, None, :] + mask * fore[:, None, None, :]
    return np.round(flat).astype(np.uint8)
