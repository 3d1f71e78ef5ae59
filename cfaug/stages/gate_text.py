"""A reader that was never trained on these images: how well an image goes with a text, by a local model of the kind of CLIP.

    text        log p(value | image) = log softmax_v  s cos(image, text_v)     Radford et al. (2021); s is the model's own temperature
    direction   cos(image' - image, text_v' - text_v)                          StyleGAN-NADA (Gal et al., 2022), CF-CLIP (Yu et al., 2022)

It knows nothing of the data's confounding, and of medical or technical images little else; its threshold is, as those of all readers, a
quantile of what real images score. Needs the package transformers; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, Schema
from cfaug.data.files import expand
from cfaug.data.images import as_rgb
from cfaug.errors import UsageError, near, one_line
from cfaug.offline.criteria import Shown
from cfaug.offline.gate import Candidates, Floats

BATCH = 64


@dataclass(frozen=True, eq=False)
class TextReader:
    """Log-probabilities (B, K) of K texts, by the model in ``directory``."""

    directory: str
    texts: tuple[str, ...]

    def __call__(self, seen: Candidates) -> Floats:
        return self.of_images(seen.images)

    def of_images(self, images: Sequence[Any]) -> Floats:
        """(N, K) of uint8 images (H, W, C)."""
        return np.concatenate([one.logits_per_image.double().log_softmax(1).numpy() for one in self._said(images)])

    def embedded(self, images: Sequence[Any]) -> tuple[Floats, Floats]:
        """Embeddings of images (N, D) and of the texts (K, D), of length 1."""
        said = list(self._said(images))
        return np.concatenate([one.image_embeds.double().numpy() for one in said]), said[0].text_embeds.double().numpy()

    def _said(self, images: Sequence[Any]) -> Iterator[Any]:
        model, tokens, pixels = _loaded(self.directory)
        said = tokens(list(self.texts), padding=True, return_tensors="pt")
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = pixels(images=[as_rgb(image) for image in images[start : start + BATCH]], return_tensors="pt")
                yield model(**said, **batch)


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
            before, after = zip(
                *((self.values.index(str(pairs[i][0])), self.values.index(str(pairs[i][1]))) for i in rows)
            )
            images = [seen.images[i] for i in rows], [seen.pixels[i] for i in rows]
            found[rows] = directions(self.read, *images, before, after) - self.least
        return found


def directions(
    reader: TextReader, images: Sequence[Any], sources: Sequence[Any], before: Sequence[int], after: Sequence[int]
) -> Floats:
    """(N,) cosines between the moves of images and of the texts of their values."""
    (made, texts), (from_, _) = reader.embedded(images), reader.embedded(sources)
    moved, said = made - from_, texts[list(after)] - texts[list(before)]
    lengths = np.linalg.norm(moved, axis=1) * np.linalg.norm(said, axis=1)
    return np.asarray((moved * said).sum(1) / np.maximum(lengths, 1e-12))


def texts_of(recipe: Recipe, schema: Schema, name: str) -> tuple[str, ...]:
    """The text of each value: as ``gate.texts`` has it, else "a photo of VALUE"."""
    given = recipe.gate.texts.get(name, {})
    return tuple(given.get(value, f"a photo of {value}") for value in schema[name].categories)


def text_readers(recipe: Recipe, schema: Schema, names: Sequence[str]) -> dict[str, TextReader]:
    """A reader of each categorical attribute among ``names``; none without ``gate.clip``."""
    if recipe.gate.clip is None:
        return {}
    place = str(expand(recipe.gate.clip))
    return {n: TextReader(place, texts_of(recipe, schema, n)) for n in names if schema[n].kind == "categorical"}


def text_scores(reader: TextReader, train: AttributeDataset, rows: Sequence[int]) -> Floats:
    """(len(rows), K) of training images, which are decoded a batch at a time."""
    parts = [
        reader.of_images([train.image(int(i)) for i in rows[start : start + BATCH]])
        for start in range(0, len(rows), BATCH)
    ]
    return np.concatenate(parts)


def text_digest(recipe: Recipe) -> str | None:
    """sha256 (hex) of the model's weights; None without one."""
    if recipe.gate.clip is None:
        return None
    return hashlib.sha256((expand(recipe.gate.clip) / "model.safetensors").read_bytes()).hexdigest()


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
        check_model(recipe)


def check_model(recipe: Recipe) -> None:
    """UsageError unless ``gate.clip`` can be opened."""
    if recipe.gate.clip is None or not (expand(recipe.gate.clip) / "model.safetensors").is_file():
        raise UsageError(
            f"gate.clip: expected a directory that transformers has saved a CLIP model in, with model.safetensors, got {recipe.gate.clip}; "
            "name one, or remove the line"
        )
    _loaded(str(expand(recipe.gate.clip)))


@cache
def _loaded(directory: str) -> tuple[Any, Any, Any]:
    try:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    except ImportError:
        raise UsageError(
            'gate.clip needs the package transformers, which is not installed; pip install "cfaug[clip]"'
        ) from None
    try:
        model = CLIPModel.from_pretrained(directory, local_files_only=True, use_safetensors=True).eval()
        tokens = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        pixels = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises its own, of many kinds
        raise UsageError(
            f"gate.clip: expected a CLIP model with its tokenizer and image processor in {Path(directory).name}, got something else "
            f"({one_line(error, 120)}); save them there with save_pretrained"
        ) from None
    return model, tokens, pixels
