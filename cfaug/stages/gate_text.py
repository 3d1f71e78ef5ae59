"""The gate's questions to a text-image model that was never trained on these images (:mod:`cfaug.decode.text_image`).

Its threshold is, as those of all readers, a quantile of what real images score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, Schema
from cfaug.data.images import Pixels
from cfaug.decode.text_image import BATCH, TextImageModel
from cfaug.errors import UsageError, near
from cfaug.offline.criteria import Shown
from cfaug.offline.gate import Candidates, Floats


@dataclass(frozen=True, eq=False)
class TextReader:
    """Log-probabilities (B, K) of K texts, by ``model``."""

    model: TextImageModel
    texts: tuple[str, ...]

    def __call__(self, seen: Candidates) -> Floats:
        return self.model.log_probabilities(seen.images, self.texts)

    def of_rows(self, dataset: AttributeDataset, rows: Sequence[int]) -> Floats:
        """(len(rows), K) of the images of a data set, which are decoded a batch at a time."""
        parts = [
            self.model.log_probabilities([dataset.image(int(i)) for i in rows[start : start + BATCH]], self.texts)
            for start in range(0, len(rows), BATCH)
        ]
        return np.concatenate(parts)

    def directions(
        self, made: Sequence[Pixels], sources: Sequence[Pixels], new: Sequence[int], old: Sequence[int]
    ) -> Floats:
        """(N,) cosines between the moves of images and those of the texts of their values, which are given by number."""
        return self.model.directions(made, sources, [self.texts[i] for i in new], [self.texts[i] for i in old])


class MatchesText(Shown):
    """Whether the image goes with the text of the value that its record states."""

    @property
    def name(self) -> str:
        return f"{self.attribute} matches its text"


@dataclass(frozen=True, eq=False)
class MovesAsText:
    """Whether an image moved, from its source, in the direction in which the text of its value moved: CF-CLIP's directional score.

    Attributes:
        attribute: what was intervened on.
        values: its values.
        read: the model and the texts of the values.
        least: the least cosine.
    """

    attribute: str
    values: Sequence[str]
    read: TextReader
    least: float

    @property
    def name(self) -> str:
        return f"{self.attribute} moves as its text"

    def margins(self, seen: Candidates) -> Floats:
        found = np.full(len(seen), np.nan)
        pairs = [(one["factual"].get(self.attribute), one["do"].get(self.attribute)) for one in seen.records]
        rows = [i for i, (old, new) in enumerate(pairs) if old is not None and new is not None and old != new]
        if rows:
            old, new = zip(*((self.values.index(str(pairs[i][0])), self.values.index(str(pairs[i][1]))) for i in rows))
            images = [seen.images[i] for i in rows], [seen.pixels[i] for i in rows]
            found[rows] = self.read.directions(*images, new, old) - self.least
        return found


def texts_of(recipe: Recipe, schema: Schema, name: str) -> tuple[str, ...]:
    """The text of each value: as ``gate.texts`` has it, else "a photo of VALUE"."""
    given = recipe.gate.texts.get(name, {})
    return tuple(given.get(value, f"a photo of {value}") for value in schema[name].categories)


def text_readers(recipe: Recipe, schema: Schema, names: Sequence[str]) -> dict[str, TextReader]:
    """A reader of each categorical attribute among ``names``; none without ``gate.clip``."""
    if recipe.gate.clip is None:
        return {}
    model = TextImageModel(recipe.gate.clip)
    return {n: TextReader(model, texts_of(recipe, schema, n)) for n in names if schema[n].kind == "categorical"}


def check_texts(recipe: Recipe, schema: Schema) -> None:
    """UsageError for a model that cannot be opened, and for texts of attributes or values that are not there."""
    for name, texts in recipe.gate.texts.items():
        if name not in schema.names:
            raise UsageError(f"gate.texts: expected attributes of the data, got {name!r}; {near(name, schema.names)}")
        for value in texts:
            if value not in schema[name].categories:
                raise UsageError(
                    f"gate.texts.{name}: expected values of {name}, got {value!r}; {near(value, schema[name].categories)}"
                )
    if recipe.gate.clip is not None:
        TextImageModel(recipe.gate.clip).check()
