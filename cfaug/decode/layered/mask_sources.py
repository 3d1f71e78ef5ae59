"""Where the mask of an object comes from: the data set, GrabCut, a salient-object net, a classifier's attribution, or a function.

    mask = source.mask(image, given)          uint8 (H, W), 255 on the object

Each is a function of the image alone (``given`` is the data set's own mask, where it has one), so a mask can be kept and found
again by the image's digest. How good a mask is, is measured (:mod:`cfaug.decode.layered.mask_quality`), not promised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from cfaug.data.files import expand
from cfaug.data.images import Pixels, as_rgb
from cfaug.errors import CfaugError, UsageError, described, near, one_line, shown

EMPTY, FULL = 0.005, 0.9
"""Shares of the image below and above which a mask is taken for a failure."""
_SMALLER = (1.0, 0.75, 0.5)
Heat = Callable[[Pixels], npt.NDArray[np.floating[Any]]]
"""Image uint8 (H, W, C) -> how much each pixel speaks for the target, (H, W), any scale."""


class MaskSource(Protocol):
    """Makes the mask of an image. Picklable."""

    @property
    def digest(self) -> str:
        """Names the source and its settings: masks are kept under it."""

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        """uint8 (H, W), 255 on the object, of an image uint8 (H, W, C). CfaugError where it cannot be made."""


@dataclass(frozen=True)
class GivenMasks:
    """The data set's own masks."""

    digest: str = "given"

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        if given is None:
            raise UsageError(
                "decoder.mask: expected masks in the data, got none; name them in data.masks, or write mask: {from: grabcut}"
            )
        return given


@dataclass(frozen=True)
class GrabCut:
    """GrabCut (Rother, Kolmogorov & Blake, 2004), as OpenCV does it, started from a prior of where the object is.

    Attributes:
        margin: without ``heat``: the share of each side that is background for certain; what is inside may be object.
        centre: the share of each side around the middle that is probably object; where nothing is left of that, a smaller one is tried.
        iterations: of GrabCut.
        heat: an attribution; where it is high is probably object, in place of the middle.
        name: names ``heat`` in the digest.
    """

    margin: float = 0.05
    centre: float = 0.9
    iterations: int = 5
    heat: Heat | None = None
    name: str = ""

    @property
    def digest(self) -> str:
        return f"grabcut {self.margin:g} {self.centre:g} {self.iterations} {self.name} opencv {cv2.__version__}"

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        if self.heat is not None:
            return self._cut(image, by_threshold(self.heat(image)))
        found = np.zeros(image.shape[:2], np.uint8)
        for share in _SMALLER:
            prior = np.zeros(image.shape[:2], bool)
            prior[_inner(image.shape[0], image.shape[1], (1 - share * self.centre) / 2)] = True
            found = self._cut(image, prior)
            if (found > 127).mean() >= EMPTY:
                break
        return found

    def _cut(self, image: Pixels, prior: npt.NDArray[np.bool_]) -> Pixels:
        """The object, where ``prior`` is probably object and the rest probably background."""
        pixels = np.ascontiguousarray(as_rgb(image))
        height, width = pixels.shape[:2]
        trimap = np.where(prior, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        border = np.ones((height, width), bool)
        border[_inner(height, width, self.margin)] = False
        trimap[border] = cv2.GC_BGD
        kinds = set(np.unique(trimap).tolist())
        if cv2.GC_PR_FGD not in kinds or not kinds & {cv2.GC_BGD, cv2.GC_PR_BGD}:
            return np.zeros((height, width), np.uint8)
        cv2.setRNGSeed(0)  # its k-means starts at random
        try:
            found, _, _ = cv2.grabCut(
                pixels, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), self.iterations, cv2.GC_INIT_WITH_MASK
            )  # type: ignore[call-overload]
        except cv2.error:  # an image of one colour has no two kinds of pixels
            return np.zeros((height, width), np.uint8)
        return np.where((found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD), 255, 0).astype(np.uint8)


def _inner(height: int, width: int, margin: float) -> tuple[slice, slice]:
    top, left = round(height * margin), round(width * margin)
    return slice(top, max(top + 1, height - top)), slice(left, max(left + 1, width - left))


@dataclass(frozen=True)
class OnnxMasks:
    """A salient-object net in an ONNX file: one image (1, 3, S, S) in, one map of the object's probability out.

    Attributes:
        path: the file.
        size: side S of its input in pixels; None: the file says it.
        mean, scale: a pixel value v in [0, 255] becomes (v - mean) / scale.
        cleaned: the map is stretched to [0, 1] and values in the middle are pushed outwards, as such nets expect.
        threads: of onnxruntime, one by default.
    """

    path: str
    size: int | None = None
    mean: float = 0.0
    scale: float = 255.0
    threads: int = 1
    sha256: str = field(default="")

    def __post_init__(self) -> None:
        place = expand(self.path)
        try:
            object.__setattr__(self, "sha256", hashlib.sha256(place.read_bytes()).hexdigest())
        except OSError as error:
            raise UsageError(
                f"decoder.mask.path: expected an ONNX file, but {place} cannot be read ({error.strerror}); correct the path"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    @property
    def digest(self) -> str:
        return f"onnx {self.sha256} {self.side} {self.mean:g} {self.scale:g}"

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(
                "decoder.mask: an ONNX file needs onnxruntime, which is not installed; run pip install 'cfaug[onnx]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self.threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(expand(self.path).read_bytes(), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own
            raise UsageError(
                f"decoder.mask.path: {self.path} cannot be read as ONNX ({one_line(error, 160)}); name another file"
            ) from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape, made = inputs[0].shape, outputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or len(made) not in (3, 4):
            said = "; ".join(
                f"{kind} {one.name} {one.shape}"
                for kind, some in (("input", inputs), ("output", outputs))
                for one in some
            )
            raise UsageError(
                f"decoder.mask.path: expected a net with one input (1, 3, S, S) and a map (1, 1, S, S) as its first output, but "
                f"{self.path} has {said}; name a salient-object net"
            )
        return session

    @cached_property
    def side(self) -> int:
        """S in pixels. UsageError where neither the settings nor the file says it, or they disagree."""
        shape = self._session.get_inputs()[0].shape
        fixed = shape[2] if isinstance(shape[2], int) else None
        if fixed is None and self.size is None:
            raise UsageError(
                f"decoder.mask.size: {self.path} takes images of any size; say which it was trained at, for example size: 320"
            )
        if fixed is not None and self.size not in (None, fixed):
            raise UsageError(f"decoder.mask.size: {self.path} takes {fixed} px, got {self.size}; write {fixed}")
        return int(self.size or fixed)  # type: ignore[arg-type]

    @property
    def least_side(self) -> int:
        """Images with a shorter side than this would have to be enlarged more than eight times."""
        return max(4, self.side // 8)

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        session, side = self._session, self.side
        scaled = cv2.resize(as_rgb(image), (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        fed = ((scaled - self.mean) / self.scale).transpose(2, 0, 1)[None]
        try:
            made = np.asarray(session.run(None, {session.get_inputs()[0].name: fed})[0], np.float32)
        except Exception as error:
            raise CfaugError(f"decoder.mask: {self.path} failed ({one_line(error, 160)}); name another net") from None
        heat = made.reshape(made.shape[-2:]) if made.size == made.shape[-2] * made.shape[-1] else made[0, 0]
        if not np.isfinite(heat).all():
            raise CfaugError(f"decoder.mask: {self.path} made values that are not finite; check mean and scale")
        low, high = float(heat.min()), float(heat.max())
        if high - low < 1e-3:  # nothing stands out
            return np.zeros(image.shape[:2], np.uint8)
        heat = (heat - low) / (high - low)
        wide = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        # a map that is unsure by a little is not a veil over the whole object
        return np.asarray(np.clip((wide - 0.1) / 0.8 * 255, 0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Attribution:
    """The part of an image by which a trained classifier tells the target: its heat map above Otsu's threshold."""

    heat: Heat
    name: str

    @property
    def digest(self) -> str:
        return f"attribution {self.name}"

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        return np.where(by_threshold(self.heat(image)), 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class CalledMasks:
    """Masks by a function of the user's: image uint8 (H, W, C) -> uint8 or bool (H, W). ``name`` must change when the function does."""

    function: Callable[[Pixels], npt.NDArray[Any]]
    name: str = "function"

    @property
    def digest(self) -> str:
        return f"function {self.name}"

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        made = np.asarray(self.function(image))
        if made.shape != image.shape[:2] or made.dtype not in (np.uint8, np.bool_):
            height, width = image.shape[:2]
            raise UsageError(
                f"masks: expected the function to return uint8 or bool of {height}x{width}, as its image is, got {described(made)}; "
                "correct it"
            )
        return np.where(made, 255, 0).astype(np.uint8) if made.dtype == np.bool_ else made


@dataclass(frozen=True)
class Threshold:
    """Everything that differs from the ground: objects on a ground of one colour.

    d = |x - median of the outermost pixels| over channels; the object is where d is above ``level`` (in [0, 255]), or, without a level,
    above Otsu's (1979) threshold of it.
    """

    level: float | None = None

    @property
    def digest(self) -> str:
        return f"threshold {self.level}"

    def mask(self, image: Pixels, given: Pixels | None) -> Pixels:
        pixels = image.astype(np.float32)
        differs = np.abs(pixels - np.median(outermost(pixels), axis=0)).mean(2)
        over = by_threshold(differs) if self.level is None else differs > self.level
        return np.where(over, 255, 0).astype(np.uint8)


def outermost(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values of the outermost pixels of an array (H, W, ...), each once."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def by_threshold(heat: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Where a map is above Otsu's (1979) threshold of it; nowhere for a flat map."""
    low, high = float(np.min(heat)), float(np.max(heat))
    if not high - low > 1e-9:
        return np.zeros(heat.shape, bool)
    levels = np.round((heat - low) / (high - low) * 255).astype(np.uint8)
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(levels > level)


_SETTINGS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "given": {},
    "grabcut": {"margin": (int, float), "centre": (int, float), "iterations": (int,), "prior": (str,)},
    "onnx": {"path": (str,), "size": (int,), "mean": (int, float), "scale": (int, float)},
    "attribution": {},
    "threshold": {"level": (int, float)},
}
PRIORS = ("centre", "attribution")


def mask_source(settings: Mapping[str, Any], heat: Callable[[], tuple[Heat, str]] | None = None) -> MaskSource:
    """The source that the group ``decoder.mask`` of a recipe names.

    ``heat`` makes an attribution and its name, asked only where one is needed. Raises UsageError for an unknown source, a setting
    that it does not have, or a value of another kind.
    """
    kind = settings.get("from", "given")
    if kind not in _SETTINGS:
        raise UsageError(
            f"decoder.mask.from: expected one of {', '.join(_SETTINGS)}, got {shown(kind)}; {near(str(kind), _SETTINGS)}"
        )
    own = {name: value for name, value in settings.items() if name != "from" and value is not None}
    for name, value in own.items():
        if name not in _SETTINGS[kind]:
            known = _SETTINGS[kind]
            more = near(name, known) if known else f"masks that are {kind} have none"
            raise UsageError(f"unknown setting 'decoder.mask.{name}'; {more}")
        types = _SETTINGS[kind][name]
        if not isinstance(value, types) or isinstance(value, bool):
            words = "text" if types == (str,) else "a number"
            raise UsageError(f"decoder.mask.{name}: expected {words}, got {shown(value)}; correct it")
    if kind == "given":
        return GivenMasks()
    if kind == "threshold":
        return Threshold(**own)
    if kind == "onnx":
        if "path" not in own:
            raise UsageError("decoder.mask.path: expected an ONNX file, got nothing; name it")
        if not own.get("scale", 255.0):
            raise UsageError("decoder.mask.scale: expected a number other than 0, got 0; pixels are divided by it")
        return OnnxMasks(**own)
    if kind == "attribution" or own.get("prior") == "attribution":
        if heat is None:
            raise UsageError("decoder.mask: an attribution needs a trained classifier; run it by `cfaug fit`")
        function, name = heat()
        if kind == "attribution":
            return Attribution(function, name)
        return GrabCut(**{k: v for k, v in own.items() if k != "prior"}, heat=function, name=name)
    if own.pop("prior", "centre") != "centre":
        raise UsageError(
            f"decoder.mask.prior: expected one of {', '.join(PRIORS)}, got {shown(settings['prior'])}; correct it"
        )
    made = GrabCut(**own)
    if not (0 <= made.margin < 0.5 and 0 < made.centre <= 1 and made.iterations >= 1):
        raise UsageError(
            "decoder.mask: expected margin in [0, 0.5), centre in (0, 1] and iterations of at least 1, got "
            f"{made.margin:g}, {made.centre:g} and {made.iterations}; correct them"
        )
    return made
