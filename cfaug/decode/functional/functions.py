"""The closed list of functions by which the value of an attribute shows in an image, and how each is undone.

name          what it does to the image                                      undone by
============  =============================================================  =================================================
stamp         lays a text or a picture over it (:mod:`.stamps`)              finding it and filling what lies under it
frame         a border of one colour                                         filling the border from inside
blur, jpeg, brightness, contrast, hue, saturation, grey, noise               nothing: the direction is refused
remove_mask   (undo only) fills what the data set's mask covers

Settings of the third row are ranges [from, to] of the parameter of an albumentations transform, drawn from the plan's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from cfaug.data.images import Pixels, as_rgb
from cfaug.decode.functional.stamps import Stamp, removed, stamp_of
from cfaug.errors import UsageError, near, shown

Draw = np.random.Generator


class Function(Protocol):
    """Shows a value in an image uint8 (H, W, C), and takes it away again where it can."""

    @property
    def invertible(self) -> bool:
        """Whether what is shown can be taken away again."""
        ...

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        """The image with the value shown; parameters are drawn from ``rng``."""
        ...

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        """The image without it; asked only where ``invertible``."""
        ...

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        """The traces that undoing leaves, on an image that has nothing to undo."""
        ...


@dataclass(frozen=True)
class Stamped:
    """A stamp."""

    stamp: Stamp
    invertible: bool = True

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        return self.stamp.put(image, rng)

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        return removed(image, self.stamp.find(image)[0])

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        return self.stamp.decoy(image, rng)


@dataclass(frozen=True)
class Framed:
    """A border of one colour (red, green, blue in [0, 255]) and a width in pixels, from and to."""

    width: tuple[int, int]
    colour: tuple[int, int, int]
    invertible: bool = True

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        made, wide = image.copy(), int(rng.integers(self.width[0], self.width[1] + 1))
        inner = np.zeros(image.shape[:2], bool)
        inner[wide : image.shape[0] - wide, wide : image.shape[1] - wide] = True
        colour = np.array(self.colour if image.shape[2] == 3 else [round(float(np.mean(self.colour)))], np.uint8)
        made[~inner] = colour
        return made

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        wide = self.width[1]
        if min(image.shape[:2]) <= 2 * wide:
            raise UsageError(
                f"frame: expected images of more than {2 * wide} px, got {image.shape[1]}x{image.shape[0]}"
            )
        inside = image[wide : image.shape[0] - wide, wide : image.shape[1] - wide]
        return np.asarray(cv2.copyMakeBorder(inside, wide, wide, wide, wide, cv2.BORDER_REFLECT_101), np.uint8).reshape(
            image.shape
        )

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        return self.undo(image, None, rng)


@dataclass(frozen=True)
class MaskRemoved:
    """Fills what the data set's mask covers."""

    invertible: bool = True

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        return image

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        if mask is None:
            raise UsageError("remove_mask: expected masks in the data, got none; name them in data.masks")
        return removed(image, mask > 127)

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        return image


@dataclass(frozen=True)
class Augmented:
    """A transform of albumentations, by its name in the closed list, with a range of its parameter."""

    name: str
    low: float
    high: float
    invertible: bool = False

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        transform = _TRANSFORMS[self.name](self.low, self.high)
        transform.set_random_seed(int(rng.integers(2**31)))
        made = np.asarray(transform(image=np.ascontiguousarray(as_rgb(image)))["image"], np.uint8)
        return made if image.shape[2] == 3 else made[..., :1]

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        raise UsageError(f"{self.name} cannot be undone")

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        return image


@dataclass(frozen=True)
class Called:
    """A function of the user's: (image uint8 (H, W, C), numpy Generator) -> image of the same size."""

    function: Callable[[Pixels, Draw], Pixels]
    inverse: Callable[[Pixels, Draw], Pixels] | None = None

    @property
    def invertible(self) -> bool:
        return self.inverse is not None

    def put(self, image: Pixels, rng: Draw) -> Pixels:
        return _same_size(self.function(image, rng), image)

    def undo(self, image: Pixels, mask: Pixels | None, rng: Draw) -> Pixels:
        assert self.inverse is not None
        return _same_size(self.inverse(image, rng), image)

    def decoy(self, image: Pixels, rng: Draw) -> Pixels:
        return image


def _same_size(made: Any, image: Pixels) -> Pixels:
    if getattr(made, "dtype", None) != np.uint8 or made.shape != image.shape:
        came = f"{getattr(made, 'dtype', type(made).__name__)} {getattr(made, 'shape', '')}".strip()
        raise UsageError(
            f"functions: expected the function to return uint8 {image.shape}, as its image is, got {came}; correct it"
        )
    return np.asarray(made)


def _compose(name: str, **parameters: Any) -> Any:
    import albumentations as A

    return A.Compose([getattr(A, name)(p=1.0, **parameters)])


_TRANSFORMS: Mapping[str, Callable[[float, float], Any]] = {
    "blur": lambda a, b: _compose("GaussianBlur", sigma_limit=(a, b), blur_limit=0),
    "jpeg": lambda a, b: _compose("ImageCompression", quality_range=(int(a), int(b))),
    "brightness": lambda a, b: _compose("RandomBrightnessContrast", brightness_limit=(a, b), contrast_limit=(0, 0)),
    "contrast": lambda a, b: _compose("RandomBrightnessContrast", brightness_limit=(0, 0), contrast_limit=(a, b)),
    "hue": lambda a, b: _compose(
        "HueSaturationValue", hue_shift_limit=(a, b), sat_shift_limit=(0, 0), val_shift_limit=(0, 0)
    ),
    "saturation": lambda a, b: _compose(
        "HueSaturationValue", hue_shift_limit=(0, 0), sat_shift_limit=(a, b), val_shift_limit=(0, 0)
    ),
    "grey": lambda a, b: _compose("ToGray"),
    "noise": lambda a, b: _compose("GaussNoise", std_range=(a, b)),
}
_RANGES: Mapping[str, tuple[float, float, float, float]] = {
    # least, most, and the range that is drawn from where the recipe says nothing
    "blur": (0.0, 20.0, 1.0, 3.0),
    "jpeg": (1, 100, 10, 30),
    "brightness": (-1.0, 1.0, 0.2, 0.4),
    "contrast": (-1.0, 1.0, 0.2, 0.4),
    "hue": (-180, 180, 60, 120),
    "saturation": (-255, 255, 60, 120),
    "grey": (0, 0, 0, 0),
    "noise": (0.0, 1.0, 0.05, 0.1),
}
NAMES = ("stamp", "frame", "remove_mask", *_RANGES)


def functions_of(given: Any, where: str) -> tuple[Function, ...]:
    """The functions of one value, in order: a mapping of names to their settings, a list of names, or nothing.

    Raises UsageError for a name outside the closed list, and for settings that do not fit.
    """
    if callable(given):
        return (Called(given),)
    if given in (None, [], {}):
        return ()
    if isinstance(given, str):
        given = {given: None}
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        given = dict.fromkeys(given)
    if not isinstance(given, dict):
        raise UsageError(
            f"{where}: expected names of functions with their settings, got {shown(given)}; write for example {{stamp: mark.png}}"
        )
    return tuple(_function(name, settings, f"{where}.{name}") for name, settings in given.items())


def _function(name: str, given: Any, where: str) -> Function:
    if name not in NAMES:
        raise UsageError(f"unknown function {where}; {near(name, NAMES)}")
    if name == "stamp":
        return Stamped(stamp_of(given, where))
    if name == "remove_mask":
        return MaskRemoved()
    if name == "frame":
        own = given if isinstance(given, dict) else {}
        width, colour = own.get("width", [2, 4]), own.get("colour", [0, 0, 0])
        width = width if isinstance(width, list) else [width, width]
        fits = len(width) == 2 and all(type(v) is int and v >= 1 for v in width) and width[0] <= width[1]
        if not fits or not isinstance(colour, list) or len(colour) != 3 or set(own) - {"width", "colour"}:
            raise UsageError(
                f"{where}: expected width: [from, to] in pixels and colour: [red, green, blue], got {shown(given)}; correct it"
            )
        return Framed((width[0], width[1]), tuple(colour))  # type: ignore[arg-type]
    least, most, low, high = _RANGES[name]
    if given is not None:
        pair = given if isinstance(given, list) else [given, given]
        numbers = len(pair) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in pair)
        if not numbers or not least <= pair[0] <= pair[1] <= most:
            raise UsageError(
                f"{where}: expected one number or [from, to] between {least:g} and {most:g}, got {shown(given)}; correct it"
            )
        low, high = pair
    return Augmented(name, low, high)
