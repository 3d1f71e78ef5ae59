"""Coloured MNIST in one colour and in two (Sauer and Geiger 2021, Counterfactual Generative Networks), with adjustable correlation.

Colored MNIST paints a grey digit (32x32, nearest) on black: its colour is the class's mean colour plus N(0, 0.02) per channel.
Double-colored: a digit is resized to 32x32 (nearest), binarised at 0.1, and painted: the object in one colour, the background in a second.
Background colour of class i is COLOURS[i], object colour is COLOURS[i - 6]; in training each holds with
probability rho, else uniform over the ten; val and test are unconfounded. uint8 (32, 32, 3).

There are two intended differences from the published construction. Test is MNIST's official test split (theirs is the
last 10 000 of train). And each image's two colours are the class colour plus N(0, 0.01) per channel (range [0, 1]),
one draw per image: the published code adds its jitter to the shared colour in place, so that its colours take a
random walk over the data set; ours stay where they are named. In a tenth of the unconfounded images object
and background draw the same colour and the digit can hardly be seen: no classifier reaches 100 %.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.datasets import SPLITS, ArrayDataset, check_split
from cfaug.data.files import expand
from cfaug.data.schema import Attribute, Schema
from cfaug.data.sources.colouring import Codes, correlations, draw_colours
from cfaug.errors import DataError, UsageError, one_line

logger = logging.getLogger(__name__)

COLOURS = {  # matplotlib's values; "maroon" is X11's #b03060, as published
    "darkgreen": (0x00, 0x64, 0x00),
    "darkblue": (0x00, 0x00, 0x8B),
    "maroon": (0xB0, 0x30, 0x60),
    "orangered": (0xFF, 0x45, 0x00),
    "yellow": (0xFF, 0xFF, 0x00),
    "burlywood": (0xDE, 0xB8, 0x87),
    "lime": (0x00, 0xFF, 0x00),
    "aqua": (0x00, 0xFF, 0xFF),
    "fuchsia": (0xFF, 0x00, 0xFF),
    "cornflower": (0x64, 0x95, 0xED),
}
JITTER = 0.01  # standard deviation, colours in [0, 1]
COLOUR_JITTER = 0.02**0.5  # of the one colour of Colored MNIST, whose published variance is 0.02
SIZE = 32
OBJECT_SHIFT = 6  # object colour of class i is the background colour of class i - 6


def schema() -> Schema:
    """digit (target), foreground and background (spurious), all categorical, with their values."""
    return digit_schema(foreground=COLOURS, background=COLOURS)


def digit_schema(**values: Iterable[str]) -> Schema:
    """digit (target), and spurious attributes with their values, all categorical."""
    spurious = [Attribute(name, values=tuple(known)) for name, known in values.items()]
    return Schema(
        [Attribute("digit", values=tuple(map(str, range(10)))), *spurious], target="digit", spurious=list(values)
    )


def digit_table(labels: Codes, keys: pd.Index, known: Iterable[str], **codes: Codes) -> pd.DataFrame:
    """The table of digits whose spurious attributes have ``codes`` among the values ``known``."""
    names = np.array(list(known), dtype=object)
    columns = {name: names[own] for name, own in codes.items()}
    return pd.DataFrame({"digit": labels.astype(str).astype(object), **columns}, index=keys)


def double_colored_mnist(
    split: str = "train",
    *,
    root: str | Path | None = None,
    rho: float | Mapping[str, float] = 0.95,
    seed: int = 0,
    confounded: bool = True,
    train_images: int = 20_000,
    val_images: int = 2_000,
) -> ArrayDataset:
    """One split; ``root`` is torchvision's MNIST root (downloaded there when absent). Keys: "mnist-train-00042".

    train is the first ``train_images`` of a fixed permutation of MNIST train, val the next ``val_images``, test the
    official 10 000. ``rho`` in [0, 1], one number or one per attribute; ``confounded=False`` paints the same digits
    in colours drawn independently of the digit. ``seed`` draws the colours, never the split. Raises UsageError for
    a bad option and DataError when MNIST can be neither read nor downloaded.
    """
    strength = correlations(rho, ("foreground", "background"), default=0.95)
    grey, own, keys = choose_digits("double_colored_mnist", split, root, train_images, val_images)
    rho_now = strength if confounded and split == "train" else dict.fromkeys(strength, 0.0)
    # val and test are unconfounded either way, so they do not depend on the flag
    rng = np.random.default_rng([seed, SPLITS.index(split), int(confounded or split != "train")])
    fore = draw_colours((own - OBJECT_SHIFT) % 10, rho_now["foreground"], rng)
    back = draw_colours(own, rho_now["background"], rng)
    shown = binary(grey)
    images = _paint(shown, _jittered(fore, rng), _jittered(back, rng))
    table = digit_table(own, keys, COLOURS, foreground=fore, background=back)
    return ArrayDataset(images, table, schema(), split, masks=as_mask(shown))


def colored_mnist(
    split: str = "train",
    *,
    root: str | Path | None = None,
    rho: float | Mapping[str, float] = 1.0,
    seed: int = 0,
    confounded: bool = True,
    train_images: int = 50_000,
    val_images: int = 2_000,
) -> ArrayDataset:
    """Grey digits in one of ten colours on black; arguments, keys and errors as :func:`double_colored_mnist`.

    The colour of a digit follows its class with probability ``rho`` in training, else it is uniform over the ten.
    """
    strength = correlations(rho, ("colour",), default=1.0)
    grey, own, keys = choose_digits("colored_mnist", split, root, train_images, val_images)
    rng = np.random.default_rng([seed, SPLITS.index(split), int(confounded or split != "train"), 1])
    codes = draw_colours(own, strength["colour"] if confounded and split == "train" else 0.0, rng)
    means = np.array(list(COLOURS.values()))[codes] / 255.0
    colours = np.clip(means + rng.normal(0.0, COLOUR_JITTER, size=means.shape), 0, 1)
    wide = enlarged(grey)
    images = np.round(wide[..., None] * colours[:, None, None, :]).astype(np.uint8)
    table = digit_table(own, keys, COLOURS, colour=codes)
    return ArrayDataset(images, table, digit_schema(colour=COLOURS), split, masks=as_mask(binary(grey)))


def choose_digits(
    source: str, split: str, root: str | Path | None, train_images: int, val_images: int
) -> tuple[npt.NDArray[np.uint8], Codes, pd.Index]:
    """The digits of a split: grey (N, 28, 28) uint8, labels (N,), and the keys ("mnist-train-00042").

    ``source`` is the data set's name, for messages. Raises UsageError for a bad option and DataError when MNIST is
    neither there nor to be had.
    """
    check_split(split)
    if train_images < 1 or val_images < 1 or train_images + val_images > 60_000:
        raise UsageError(
            "train_images and val_images must be at least 1 and together at most MNIST's 60000, "
            f"got {train_images} and {val_images}"
        )
    if root is None:
        raise UsageError(f"{source} needs a root; give the directory that holds (or shall hold) MNIST/raw")
    grey, labels = _read(expand(root), train=split != "test")
    if split == "test":
        rows = np.arange(len(grey))
    else:
        order = np.random.default_rng(0).permutation(len(grey))
        rows = order[:train_images] if split == "train" else order[train_images : train_images + val_images]
    part = "test" if split == "test" else "train"  # the MNIST file a digit comes from, so that a key names one digit
    keys = pd.Index([f"mnist-{part}-{i:05d}" for i in rows], dtype=object)
    return grey[rows], labels[rows], keys


def enlarged(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(N, 28, 28) -> (N, 32, 32): nearest as in torch's interpolate (floor)."""
    source = np.arange(SIZE) * grey.shape[1] // SIZE
    return grey[:, source[:, None], source[None, :]]


def binary(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(N, 28, 28) grey -> (N, 32, 32): enlarged, then > 0.1 of full white."""
    return enlarged(grey) > 0.1 * 255


def as_mask(shown: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Where the digit is painted, as masks: uint8, 255 on the object."""
    return np.where(shown, 255, 0).astype(np.uint8)


def _jittered(codes: Codes, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(N,) colour codes -> (N, 3) uint8 colours, each with its own N(0, JITTER) per channel, clipped."""
    flat = np.array(list(COLOURS.values()))[codes] / 255.0 + rng.normal(0.0, JITTER, size=(len(codes), 3))
    return np.round(np.clip(flat, 0, 1) * 255).astype(np.uint8)


def _paint(
    mask: npt.NDArray[np.bool_], fore: npt.NDArray[np.uint8], back: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    return np.where(mask[..., None], fore[:, None, None, :], back[:, None, None, :])


def _read(root: Path, train: bool) -> tuple[npt.NDArray[np.uint8], Codes]:
    """MNIST through torchvision: grey (N, 28, 28) uint8 and labels (N,)."""
    from torchvision.datasets import MNIST

    try:
        try:
            mnist = MNIST(str(root), train=train, download=False)
        except RuntimeError:  # torchvision's way to say "not there"
            logger.info("downloading MNIST to %s", root)
            mnist = MNIST(str(root), train=train, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        for empty in (root / "MNIST" / "raw", root / "MNIST"):  # torchvision leaves empty directories behind
            with contextlib.suppress(OSError):
                empty.rmdir()
        reason = one_line(error, 200)
        raise DataError(
            f"{root}: expected MNIST in torchvision's layout (MNIST/raw/train-images-idx3-ubyte, ...), could neither "
            f"read nor download it ({reason}); pass a different root"
        ) from error
    return mnist.data.numpy().astype(np.uint8), mnist.targets.numpy().astype(np.int64)
