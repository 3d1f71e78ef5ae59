"""Wildlife MNIST (Sauer and Geiger 2021, Counterfactual Generative Networks): digits cut out of one texture, on another.

A texture (Cimpoi et al. 2014, Describable Textures) is resized to 150 px (short side, nearest), and a window of 32 px is drawn from it,
padded by 3 px of its mirror image. The object of class i has the i-th "striped" texture, its background the i-th "veined" one, each with
probability rho in training, else uniform over the ten; val and test are unconfounded. uint8 (32, 32, 3).

Test is MNIST's official test split (the published one is the last 10 000 of train). The directory has the 20 files of the published data set,
``wildlife_textures/background`` and ``wildlife_textures/object``, whose names begin with the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.data.datasets import SPLITS, ArrayDataset
from cfaug.data.files import expand
from cfaug.data.images import read_image
from cfaug.data.schema import Schema
from cfaug.data.sources.colouring import Codes, correlations, draw_colours
from cfaug.data.sources.mnist import SIZE, as_mask, binary, choose_digits, digit_schema, digit_table
from cfaug.errors import DataError, UsageError

SIDE, PADDING = 150, 3
LAYERS = ("background", "object")
NAMES = tuple(f"texture{i}" for i in range(10))
Textures = list[npt.NDArray[np.uint8]]


def schema() -> Schema:
    """digit (target), foreground and background (spurious): the textures, by their number."""
    return digit_schema(foreground=NAMES, background=NAMES)


def wildlife_mnist(
    split: str = "train",
    *,
    root: str | Path | None = None,
    rho: float | Mapping[str, float] = 1.0,
    seed: int = 0,
    confounded: bool = True,
    train_images: int = 50_000,
    val_images: int = 2_000,
) -> ArrayDataset:
    """One split; ``root`` has ``wildlife_textures/``, and MNIST in torchvision's layout, itself or in ``mnist/``.

    The other arguments, the keys and the errors are those of :func:`cfaug.data.sources.mnist.double_colored_mnist`.
    """
    if root is None:
        raise UsageError("wildlife_mnist needs a root; give the directory that holds wildlife_textures and MNIST")
    place = expand(root)
    textures = {layer: read_textures(place / "wildlife_textures" / layer) for layer in LAYERS}
    digits = place / "mnist" if (place / "mnist").is_dir() else place
    strength = correlations(rho, ("foreground", "background"), default=1.0)
    grey, own, keys = choose_digits("wildlife_mnist", split, digits, train_images, val_images)
    rho_now = strength if confounded and split == "train" else dict.fromkeys(strength, 0.0)
    rng = np.random.default_rng([seed, SPLITS.index(split), int(confounded or split != "train"), 2])
    fore, back = (draw_colours(own, rho_now[name], rng) for name in ("foreground", "background"))
    shown = binary(grey)
    images = np.where(
        shown[..., None], _windows(textures["object"], fore, rng), _windows(textures["background"], back, rng)
    )
    table = digit_table(own, keys, NAMES, foreground=fore, background=back)
    return ArrayDataset(images, table, schema(), split, masks=as_mask(shown))


def read_textures(place: Path) -> Textures:
    found: Textures = []
    for i in range(10):
        files = sorted(place.glob(f"{i}_*.jpg"))
        if not files:
            raise DataError(
                f"{place}: expected the textures of the ten classes, {i}_*.jpg and so on, got none of class {i}; put them there"
            )
        picture = Image.fromarray(read_image(files[0])).convert("RGB")
        scale = SIDE / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        pixels = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
        found.append(np.pad(pixels, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect"))
    return found


def _windows(textures: Textures, codes: Codes, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(N, 32, 32, 3): a window of each row's texture, anywhere in it."""
    made = np.empty((len(codes), SIZE, SIZE, 3), np.uint8)
    at = rng.random((len(codes), 2))
    for i, code in enumerate(codes.tolist()):
        texture = textures[code]
        y, x = (int(at[i, k] * (texture.shape[k] - SIZE + 1)) for k in (0, 1))
        made[i] = texture[y : y + SIZE, x : x + SIZE]
    return made
