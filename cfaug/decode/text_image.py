"""A model that was never trained on these images: how well an image goes with a text, by a local model of the kind of CLIP.

    text        log p(text | image) = log softmax_t  s cos(image, text_t)      Radford et al. (2021); s is the model's own temperature
    direction   cos(image' - image, text' - text)                              StyleGAN-NADA (Gal et al., 2022), CF-CLIP (Yu et al., 2022)

It knows nothing of the data's confounding, and of medical or technical images little else. Needs the package transformers; nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cfaug.data.files import expand
from cfaug.data.images import Pixels, as_rgb
from cfaug.errors import UsageError, one_line

Floats = npt.NDArray[np.float64]
BATCH = 64


@dataclass(frozen=True)
class TextImageModel:
    """A CLIP model that transformers has saved, with its tokenizer and its image processor.

    Attributes:
        directory: where it lies.
        setting: the setting that names it, for messages.
    """

    directory: str
    setting: str = "gate.clip"

    def log_probabilities(self, images: Sequence[Pixels], texts: Sequence[str]) -> Floats:
        """(N, K) of K texts given uint8 images (H, W, C)."""
        said = self._said(images, texts)
        return np.concatenate([one.logits_per_image.double().log_softmax(1).numpy() for one in said])

    def directions(
        self, made: Sequence[Pixels], sources: Sequence[Pixels], new: Sequence[str], old: Sequence[str]
    ) -> Floats:
        """(N,) cosines between the moves of images and of their texts; 0 where either did not move."""
        from_, said = self._start(sources, new, old)
        moved = self.embedded(made, new[:1])[0] - from_
        lengths = np.linalg.norm(moved, axis=1) * np.linalg.norm(said, axis=1)
        return np.asarray((moved * said).sum(1) / np.maximum(lengths, 1e-12))

    def moves(
        self, sources: Sequence[Pixels], new: Sequence[str], old: Sequence[str]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gives, of images (N, 3, H, W) in [0, 1], the (N,) cosines of :meth:`directions` with a gradient to the images."""
        model, _, processor = self._parts()
        from_, said = (torch.from_numpy(some).float() for some in self._start(sources, new, old))
        mean, deviation = (
            torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        side = model.config.vision_config.image_size

        def cosines(made: torch.Tensor) -> torch.Tensor:
            pixels = F.interpolate(made.clamp(0, 1), size=side, mode="bicubic", antialias=True)
            seen = model.get_image_features(pixel_values=(pixels - mean) / deviation).pooler_output
            return torch.cosine_similarity(F.normalize(seen) - from_, said)

        return cosines

    def _start(self, sources: Sequence[Pixels], new: Sequence[str], old: Sequence[str]) -> tuple[Floats, Floats]:
        """Where images start from (N, D), and how their texts move (N, D)."""
        texts = sorted({*new, *old})
        from_, embedded = self.embedded(sources, texts)
        return from_, embedded[[texts.index(text) for text in new]] - embedded[[texts.index(text) for text in old]]

    def embedded(self, images: Sequence[Pixels], texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Embeddings of images (N, D) and of texts (K, D), of length 1."""
        said = list(self._said(images, texts))
        return np.concatenate([one.image_embeds.double().numpy() for one in said]), said[0].text_embeds.double().numpy()

    def _said(self, images: Sequence[Pixels], texts: Sequence[str]) -> Iterator[Any]:
        model, tokens, pixels = self._parts()
        said = tokens(list(texts), padding=True, return_tensors="pt")
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = pixels(images=[as_rgb(image) for image in images[start : start + BATCH]], return_tensors="pt")
                yield model(**said, **batch)

    def check(self) -> None:
        """UsageError unless it can be opened."""
        if not self.weights.is_file():
            raise UsageError(
                f"{self.setting}: expected a directory that transformers has saved a CLIP model in, with model.safetensors, got {self.directory}; "
                "name one, or remove the line"
            )
        self._parts()

    def _parts(self) -> tuple[Any, Any, Any]:
        """Model, tokenizer and image processor, loaded once in each process whatever setting names them."""
        place = expand(self.directory)
        try:
            return _loaded(str(place))
        except ImportError:
            raise UsageError(
                f'{self.setting} needs the package transformers, which is not installed; pip install "cfaug[clip]"'
            ) from None
        except Exception as error:  # transformers raises its own, of many kinds
            raise UsageError(
                f"{self.setting}: expected a CLIP model with its tokenizer and image processor in {place.name}, got something else "
                f"({one_line(error, 120)}); save them there with save_pretrained"
            ) from None

    @property
    def weights(self) -> Path:
        """Its file of weights."""
        return expand(self.directory) / "model.safetensors"

    @property
    def digest(self) -> str:
        """sha256 (hex) of its weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()


@cache
def _loaded(place: str) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    with torch.inference_mode(False):
        model = CLIPModel.from_pretrained(place, local_files_only=True, use_safetensors=True).eval()
    tokens = AutoTokenizer.from_pretrained(place, local_files_only=True)
    return model.requires_grad_(False), tokens, AutoImageProcessor.from_pretrained(place, local_files_only=True)
