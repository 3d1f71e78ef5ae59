"""Which mechanism suits an attribute: where in the images, within a class, do its values differ?

Each image is reduced to a few numbers of a region (mean and deviation of every channel, mean steepness of its edges): inside the object
and outside where there are masks, rims left out, else in the middle and at the border. For each number

    R^2 = 1 - SS(within class and value) / SS(within class)

is the share of its variation within a class that the attribute explains. A hypothesis from summary statistics, not a proof: look at the
images. Where class and attribute go together without exception nothing can be told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import binary_erosion

from cfaug.config import Recipe
from cfaug.data.images import Pixels
from cfaug.stages.checked_inputs import Inputs

LOOKED_AT = 600
MIDDLE = 0.5  # of each side, where there are no masks
SHOWS, CLEARLY = 0.05, 2.0
"""An attribute shows in a region from this R^2 on, and lives there where it explains so many times more than in the other."""
STILL = 1e-6
"""A number whose variance within a class is less, in squared grey levels, does not vary: nothing explains rounding."""
CORE = 8  # pixels of a region without its rim, at least; a thinner one is taken whole

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """How much of an attribute shows where: R^2 of the numbers of each region, and of the edges of both, each in [0, 1].

    ``of``: which number of each region it explains best.
    """

    inside: float
    outside: float
    edges: float
    of: tuple[str, str]


def advise_decoder(recipe: Recipe, inputs: Inputs) -> list[str]:
    """One sentence for each attribute that shows in the image, the target apart: a mechanism, and why."""
    train = inputs.train
    rows = np.sort(np.random.default_rng([recipe.seed, 8]).permutation(len(train))[:LOOKED_AT]).tolist()
    masks = train.mask(rows[0]) is not None
    numbers = np.stack([_numbers(train.image(i), train.mask(i)) for i in rows])
    table = train.table.iloc[rows]
    groups = inputs.grouper.levels
    found = []
    for name in inputs.graph.parents("image"):
        if name != inputs.target:
            levels = groups(table, name, missing=True) if name in inputs.schema.spurious else table[name]
            found.append(f"{name}: {_sentence(name, _shown(numbers, table[inputs.target], levels), masks)}")
    return found


def _numbers(image: Pixels, mask: Pixels | None) -> Floats:
    """(2, 2 C + 1): the numbers inside and outside; the last of each is the steepness."""
    inside = np.zeros(image.shape[:2], bool)
    if mask is None:
        h, w = image.shape[:2]
        inside[
            round(h * MIDDLE / 2) : round(h * (1 - MIDDLE / 2)), round(w * MIDDLE / 2) : round(w * (1 - MIDDLE / 2))
        ] = True
    else:
        inside = mask > 127
    steep = np.hypot(*np.gradient(image.mean(2)))
    regions = []
    for region in (inside, ~inside):
        core = binary_erosion(region, border_value=1)  # a rim is of both
        where = core if core.sum() >= CORE else region if region.any() else np.ones_like(region)
        slopes = steep[core].mean() if core.any() else 0.0
        regions.append(np.r_[image[where].mean(0), image[where].std(0), slopes])
    return np.stack(regions)


def _shown(numbers: Floats, target: pd.Series, levels: pd.Series) -> Shown | None:
    known = levels.notna().to_numpy()
    classes = pd.factorize(target[known])[0]
    cells = pd.factorize(target[known].astype(str) + "\0" + levels[known].astype(str))[0]
    if cells.max(initial=-1) <= classes.max(initial=-1):  # the class tells the value
        return None
    values = numbers[known].reshape(known.sum(), -1)
    varies = _within(values, classes)
    explained = np.where(varies > STILL * len(values), 1 - _within(values, cells) / np.maximum(varies, 1e-12), 0)
    # the number of values alone explains something by chance
    freedom = (cells.max() - classes.max()) / max(1, len(cells) - classes.max() - 1)
    inside, outside = np.clip((explained.reshape(numbers.shape[1:]) - freedom) / max(1 - freedom, 1e-12), 0, 1)
    of = (_number(int(inside.argmax()), len(inside)), _number(int(outside.argmax()), len(outside)))
    return Shown(float(inside.max()), float(outside.max()), float(max(inside[-1], outside[-1])), of)


def _number(i: int, count: int) -> str:
    return "edges" if i == count - 1 else "mean colour" if i < count // 2 else "contrast"


def _within(values: Floats, codes: npt.NDArray[np.int64]) -> Floats:
    means = np.stack([values[codes == code].mean(0) for code in range(codes.max() + 1)])
    squares: Floats = ((values - means[codes]) ** 2).sum(0)
    return squares


def _sentence(name: str, shown: Shown | None, masks: bool) -> str:
    if shown is None:
        return "in these images the class tells the value, so where it shows cannot be told; if it lives in a region, write kind: layered"
    places = ("the object", "the background") if masks else ("the middle", "the border")
    said = (
        f"within a class it explains {100 * shown.inside:.0f} % of the variation of {places[0]}'s {shown.of[0]} and {100 * shown.outside:.0f} % of "
        f"that of {places[1]}'s {shown.of[1]}"
    )
    hint = "" if masks else "; it needs masks: data.masks, or mask: {from: grabcut}"
    if max(shown.inside, shown.outside) < SHOWS:
        return f"{said}: no simple number shows it; a stamp or a small mark would look so (kind: functional), else kind: diffusion"
    if shown.outside > CLEARLY * shown.inside:
        return f"{said}: kind: layered, layers: {{background: [{name}]}}{hint}"
    if shown.inside > CLEARLY * shown.outside:
        return f"{said}: kind: layered, layers: {{foreground: [{name}]}}{hint}"
    moves = (
        "changes edges, so structure: none" if shown.edges >= SHOWS else "moves no edge, so structure: layout may hold"
    )
    return f"{said}: it is global and {moves} (kind: diffusion); a known function of the image would be better (kind: functional)"
