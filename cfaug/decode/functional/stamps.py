"""Stamps: a text or a picture that lies on an image, drawn, found again and taken away.

    put:      x' = (1 - o a) x + o a c          a in [0, 1]: the stamp's alpha, c: its colour, o: its opacity
    take:     o a = (x - filled x) / (c - filled x) where a stamp was found: stamps as the training images have them
    find:     a frame: the rectangle whose weakest side is the brightest ridge; without one, the place at which the image correlates
              best with the alpha, where both are freed of slow changes of light
    remove:   what was found is filled from around it (Telea, 2004): the alpha, or a frame with the bright strokes inside it

Pixels are uint8 (H, W, C). Text is drawn by OpenCV in a Hershey font, which needs no font file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cfaug.data.files import expand
from cfaug.data.images import Pixels, decode, to_pil
from cfaug.decode.layered.compositing import filled
from cfaug.errors import UsageError, one_line, shown

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_FINE = 4  # text is drawn so many times larger and then reduced, so that its edges are smooth
CAP = 32.0  # grey levels by which a line has to stand out to count in full
SIZES = 12  # sizes of a stamp that is looked for, evenly over its range


@dataclass(frozen=True)
class Place:
    """Where a stamp is put: its alpha (h, w) in [0, 1], colours (h, w, C or 1), and the top left pixel."""

    alpha: Floats
    colours: Floats
    top: int
    left: int


@dataclass(frozen=True)
class Stamp:
    """A family of stamps: one text or picture, one size, one place and one opacity are drawn for an image.

    Attributes:
        texts: of which one is drawn; empty with ``image``.
        image: a PNG with transparency, or of anything but black.
        box: a frame around a text.
        size: height in pixels, from and to.
        places: boxes (left, top, right, bottom) as shares of the image, inside which a stamp lies.
        opacity: from and to, in (0, 1].
        level: grey level of a text in [0, 255].
        jpeg: quality at which the image is encoded and decoded after a stamp was put, as the training images were: a real stamp has the
            codec's ripples around it, and they stay when it is taken away.
        taken: how many training images, at most, lend their stamps; then these are drawn, at their places, in place of rendered ones.
    """

    texts: tuple[str, ...] = ()
    image: str | None = None
    box: bool = False
    size: tuple[int, int] = (14, 24)
    places: tuple[tuple[float, float, float, float], ...] = ((0.0, 0.0, 1.0, 1.0),)
    opacity: tuple[float, float] = (0.8, 1.0)
    level: float = 255.0
    taken: int = 0
    jpeg: int | None = None

    def learn(self, images: Iterable[Pixels]) -> None:
        """Take the stamps of these images, which all have one; the quarter that was found least surely is left out."""
        found = []
        for image in images:
            hole, score = self.find(image)
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            if not len(rows):
                continue
            part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            below = removed(image, hole).astype(np.float32)[part]
            alpha = ((image[part] - below) / np.maximum(self.level - below, 1.0)).max(2)
            alpha = np.where(hole[part], np.clip(alpha, 0, 1), 0).astype(np.float32)
            found.append((score, Place(alpha, self.flat(alpha), int(rows[0]), int(columns[0]))))
        found.sort(key=lambda pair: -pair[0])
        self.keep_examples([place for _, place in found[: max(1, 3 * len(found) // 4)]])

    def flat(self, alpha: Floats) -> Floats:
        """Colours (h, w, 1) of the level everywhere."""
        return np.full((*alpha.shape, 1), self.level, np.float32)

    @property
    def examples(self) -> list[Place]:
        """The stamps that were taken."""
        return self.__dict__.get("_examples", [])  # type: ignore[no-any-return]

    def keep_examples(self, examples: list[Place]) -> None:
        """Draw these from now on."""
        self.__dict__["_examples"] = examples

    def draw(self, image: Pixels, rng: np.random.Generator) -> tuple[Place, float]:
        """A stamp at its place on an image, and its opacity."""
        if self.examples:
            return self.examples[int(rng.integers(len(self.examples)))], 1.0
        height = int(rng.integers(self.size[0], self.size[1] + 1))
        which = int(rng.integers(max(1, len(self.texts))))
        left, top, right, bottom = self.places[int(rng.integers(len(self.places)))]
        alpha, colours = self._drawn(which, height, image.shape[2])
        rows, columns = image.shape[:2]
        alpha, colours = alpha[:rows, :columns], colours[:rows, :columns]
        low = (round(top * rows), round(left * columns))
        high = (round(bottom * rows) - alpha.shape[0], round(right * columns) - alpha.shape[1])
        at = [int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high)]
        y = min(max(at[0], 0), rows - alpha.shape[0])
        x = min(max(at[1], 0), columns - alpha.shape[1])
        return Place(alpha, colours, y, x), float(rng.uniform(*self.opacity))

    def put(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """The image with a stamp."""
        place, opacity = self.draw(image, rng)
        return self._encoded(laid(image, place, opacity))

    def decoy(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """The image after a stamp was put and taken away again."""
        place, opacity = self.draw(image, rng)
        hole = np.zeros(image.shape[:2], bool)
        h, w = place.alpha.shape
        hole[place.top : place.top + h, place.left : place.left + w] = place.alpha > 0.05
        return removed(self._encoded(laid(image, place, opacity)), hole)

    def _encoded(self, image: Pixels) -> Pixels:
        if self.jpeg is None:
            return image
        stream = io.BytesIO()
        to_pil(image).save(stream, "JPEG", quality=self.jpeg)
        return np.asarray(decode(stream.getvalue()).pixels)

    def find(self, image: Pixels) -> tuple[Bools, float]:
        """The pixels (H, W) of the stamp of this family that fits best, and how well. It is there or not: that is for the caller to know."""
        grey = image.astype(np.float32).mean(2)
        if min(grey.shape) < self.size[0]:
            raise UsageError(
                f"stamp: expected images larger than the stamp of {self.size[0]} px, got {image.shape[1]}x{image.shape[0]}; lower its size"
            )
        return framed(grey, self.size) if self.box else self._matched(image)

    def _matched(self, image: Pixels) -> tuple[Bools, float]:
        flats = [without_light(image[..., c].astype(np.float32)) for c in range(image.shape[2])]
        flat, best = flats[0], -np.inf
        hole = np.zeros(flat.shape, bool)
        for height in np.unique(np.linspace(*self.size, SIZES).round().astype(int)).tolist():
            for which in range(max(1, len(self.texts))):
                alpha, _ = self._drawn(which, height, image.shape[2])
                if alpha.shape[0] > flat.shape[0] or alpha.shape[1] > flat.shape[1]:
                    continue
                wanted = without_light(alpha)
                # brighter or darker than what lies below, channel by channel
                found = [np.abs(cv2.matchTemplate(one, wanted, cv2.TM_CCOEFF_NORMED)) for one in flats]
                score = np.sum(found, axis=0)
                _, high, _, (x, y) = cv2.minMaxLoc(score)
                if high > best:
                    best = high
                    hole[:] = False
                    hole[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha > 0.05
        return hole, float(best)

    def _drawn(self, which: int, height: int, channels: int) -> tuple[Floats, Floats]:
        if self.texts:
            alpha = _text(self.texts[which], height, self.box)
            return alpha, self.flat(alpha)
        picture = self.picture
        width = max(1, round(height * picture.shape[1] / picture.shape[0]))
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        colours = scaled[..., :3] if channels == 3 else scaled[..., :3].mean(2, keepdims=True)
        return np.asarray(scaled[..., 3] / 255, np.float32), np.ascontiguousarray(colours, np.float32)

    @property
    def picture(self) -> Floats:
        """The picture with its alpha, float32 (h, w, 4) in [0, 255]; read once."""
        if "_picture" not in self.__dict__:
            self.keep(_read(expand(str(self.image))))
        return self.__dict__["_picture"]  # type: ignore[no-any-return]

    def keep(self, picture: Floats) -> None:
        """Use this picture instead of the file's: a saved model brings its own."""
        self.__dict__["_picture"] = picture


def _read(place: Path) -> Floats:
    try:
        with Image.open(place, formats=["PNG"]) as opened:
            picture = np.asarray(opened.convert("RGBA"), np.float32)
            transparent = opened.has_transparency_data
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(
            f"decoder.functions: the stamp {place} cannot be read as PNG ({one_line(error)}); name another file"
        ) from None
    if not transparent:  # black is what is not there
        picture = np.dstack([picture[..., :3], picture[..., :3].max(2)])
    return np.asarray(picture, np.float32)


def laid(image: Pixels, place: Place, opacity: float) -> Pixels:
    """The image with a stamp laid over it."""
    made = image.astype(np.float32)
    h, w = place.alpha.shape
    part = made[place.top : place.top + h, place.left : place.left + w]
    weight = opacity * place.alpha[..., None]
    part += weight * (place.colours - part)
    return np.clip(made.round(), 0, 255).astype(np.uint8)


def removed(image: Pixels, hole: Bools, margin: int = 1) -> Pixels:
    """The image with a hole (H, W), widened by ``margin`` pixels, filled from around it."""
    wide = cv2.dilate(hole.astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    return filled(image, wide.astype(bool))


def framed(grey: Floats, size: tuple[int, int]) -> tuple[Bools, float]:
    """The pixels (H, W) of the frame that stands out most, and of the bright strokes inside it; and the brightness of its weakest side.

    Of all rectangles of ``size`` (from and to, in pixels, each side) it is the one whose weakest side is the brightest thin line.
    """
    shown = strokes(grey)
    # a side that is half a bright letter must not beat a faint side that is whole; beyond the border a side may be cut off
    ridges = np.pad(np.minimum(shown, CAP), 1, constant_values=CAP / 2)
    best, found = -1.0, (0, 0, size[0], size[0])
    rows, columns = ridges.shape
    sides = range(size[0], min(size[1], rows, columns) + 1)
    across = {w: _run(ridges, w, 1) for w in sides}
    down = {h: _run(ridges, h, 0) for h in sides}
    for h in sides:
        for w in sides:
            if not 0.6 <= w / h <= 1.7:
                continue
            top, left = across[w], down[h]
            score = np.minimum(
                np.minimum(top[: rows - h + 1], top[h - 1 :]), np.minimum(left[:, : columns - w + 1], left[:, w - 1 :])
            )
            place = int(score.argmax())
            if score.flat[place] > best:
                best = float(score.flat[place])
                found = (*divmod(place, score.shape[1]), h, w)
    y, x, h, w = found
    hole = np.zeros(ridges.shape, bool)
    hole[y : y + h, x : x + w] = np.pad(shown, 1)[y : y + h, x : x + w] > 0.25 * max(best, 1.0)
    for part in (
        (y, slice(x, x + w)),
        (y + h - 1, slice(x, x + w)),
        (slice(y, y + h), x),
        (slice(y, y + h), x + w - 1),
    ):
        hole[part] = True
    return hole[1:-1, 1:-1], best


def strokes(grey: Floats) -> Floats:
    """How much a pixel is brighter than its surroundings without thin lines (a white top hat of 5 x 5), (H, W)."""
    return np.asarray(cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones((5, 5), np.uint8)), np.float32)


def _run(values: Floats, length: int, axis: int) -> Floats:
    """Means of ``length`` values that follow one another along an axis."""
    total = np.cumsum(values, axis=axis, dtype=np.float64)
    total = np.concatenate([np.zeros_like(np.take(total, [0], axis)), total], axis=axis)
    count = values.shape[axis]
    found = np.take(total, range(length, count + 1), axis) - np.take(total, range(count - length + 1), axis)
    return np.asarray(found / length, np.float32)


def without_light(grey: Floats) -> Floats:
    """A map (H, W) less its local mean over 9 x 9 pixels."""
    return np.asarray(grey - cv2.blur(grey, (9, 9)), np.float32)


def _text(text: str, height: int, box: bool) -> Floats:
    """The alpha of a text of that height in pixels, box and all."""
    fine = height * _FINE
    # a boxed text fills half of its box's height, as markers do
    letters = fine * (0.5 if box else 0.8)
    scale = letters / cv2.getTextSize("A", cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)[0][1]
    stroke = max(1, round(fine / (26 if box else 16)))
    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    wide = max(fine, width + round(fine * 0.3)) if box else width + 2 * stroke
    canvas = np.zeros((fine, wide), np.uint8)
    at = ((wide - width) // 2, (fine + tall) // 2)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, stroke, cv2.LINE_AA)
    if box:
        cv2.rectangle(canvas, (0, 0), (wide - 1, fine - 1), 255, round(stroke * 3))
    small = cv2.resize(canvas, (max(1, round(wide / _FINE)), height), interpolation=cv2.INTER_AREA)
    return np.asarray(small / 255, np.float32)


def stamp_of(given: Any, where: str) -> Stamp:
    """The stamp that a recipe describes; UsageError for what it cannot be."""
    if isinstance(given, str):
        given = {"image": given} if given.lower().endswith(".png") else {"text": given}
    if not isinstance(given, dict):
        raise UsageError(f"{where}: expected a text, a PNG file or a group of settings, got {shown(given)}; correct it")
    known = ("text", "image", "box", "size", "places", "opacity", "level", "taken", "jpeg")
    for name in given:
        if name not in known:
            raise UsageError(f"unknown setting {where}.{name}; expected one of {', '.join(known)}")
    texts = given.get("text", [])
    texts = [texts] if isinstance(texts, str) else texts
    image = given.get("image")
    if bool(texts) == (image is not None) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(
            f"{where}: expected a text (or a list of texts) or an image, one of the two; write for example text: [L, R]"
        )
    size = _pair(given.get("size", [14, 24]), f"{where}.size", 2, 4096)
    opacity = _pair(given.get("opacity", [0.8, 1.0]), f"{where}.opacity", 0.0, 1.0)
    boxes = given.get("places", [[0, 0, 1, 1]])
    if not isinstance(boxes, list) or not boxes or not all(_is_box(box) for box in boxes):
        raise UsageError(
            f"{where}.places: expected boxes [left, top, right, bottom] in shares of the image, got {shown(boxes)}; write for "
            "example [[0, 0, 0.3, 0.3]]"
        )
    level = given.get("level", 255)
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 255:
        raise UsageError(f"{where}.level: expected a grey level from 0 to 255, got {shown(level)}; correct it")
    taken = given.get("taken", 0)
    if type(taken) is not int or taken < 0:
        raise UsageError(
            f"{where}.taken: expected a number of training images from 0 up, got {shown(taken)}; correct it"
        )
    jpeg = given.get("jpeg")
    if jpeg is not None and (type(jpeg) is not int or not 1 <= jpeg <= 100):
        raise UsageError(f"{where}.jpeg: expected a quality from 1 to 100, got {shown(jpeg)}; correct it")
    return Stamp(
        tuple(texts), image, bool(given.get("box", False)), (int(size[0]), int(size[1])),
        tuple(tuple(map(float, box)) for box in boxes), opacity, float(level), taken, jpeg,  # type: ignore[arg-type, misc]
    )  # fmt: skip


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    return numbers and all(0 <= v <= 1 for v in box) and box[0] < box[2] and box[1] < box[3]


def _pair(given: Any, where: str, least: float, most: float) -> tuple[float, float]:
    values: Sequence[Any] = given if isinstance(given, list) else [given, given]
    numbers = len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or not least <= values[0] <= values[1] <= most:
        raise UsageError(
            f"{where}: expected one number or [from, to] between {least:g} and {most:g}, got {shown(given)}; correct it"
        )
    return float(values[0]), float(values[1])
