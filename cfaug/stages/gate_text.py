"""A reader that was never trained on these images: how well an image goes with a text, by a local model of the kind of CLIP.

    log p(value | image) = log softmax_v  s cos(image, text_v)        Radford et al. (2021); s is the model's own temperature

It knows nothing of the data's confounding, and of medical or technical images little else; its threshold is, as those of all readers, a
quantile of what real images score. Needs the package transformers; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
        model, tokens, pixels = _loaded(self.directory)
        said = tokens(list(self.texts), padding=True, return_tensors="pt")
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = pixels(images=[as_rgb(image) for image in images[start : start + BATCH]], return_tensors="pt")
                parts.append(model(**said, **batch).logits_per_image.double().log_softmax(1).numpy())
        return np.concatenate(parts)


class MatchesText(Shown):
    """Whether the image goes with the text of the value that its record states."""

    @property
    def name(self) -> str:
        return f"{self.attribute} matches its text"


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
