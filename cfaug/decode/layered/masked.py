"""A data set with masks from a source: each is made once, when it is first asked for, and kept on disk by the image's digest.

A directory holds one PNG for each image, written whole or not at all: so a killed run goes on where it was, and several processes
may fill it at once. A file that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from cfaug.data import AttributeDataset, pixel_digest
from cfaug.data.images import Pixels, read_mask
from cfaug.decode.layered.mask_sources import GivenMasks, MaskSource, Threshold
from cfaug.errors import DataError

log = logging.getLogger(__name__)

_REMEMBERED = 2000


class MaskedDataset:
    """``dataset`` with the masks of ``source``. Everything else is the data set's own. Picklable where both are.

    Args:
        dataset: any AttributeDataset.
        source: see :mod:`cfaug.decode.layered.mask_sources`.
        directory: where masks are kept; None: they are made again in every process.
    """

    def __init__(self, dataset: AttributeDataset, source: MaskSource, directory: Path | None = None) -> None:
        quick = isinstance(source, GivenMasks | Threshold)  # quicker to make again than to look up
        self.dataset, self.source, self.directory = dataset, source, None if quick else directory
        self.mask_digest = source.digest
        self._remembered: dict[int, Pixels] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_remembered": {}}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]

    def mask(self, i: int, /) -> Pixels:
        """The mask of image ``i``: uint8 (H, W), 255 on the object."""
        if i not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[i] = self._found(i)
        return self._remembered[i]

    def _found(self, i: int) -> Pixels:
        given = getattr(self.dataset, "mask", lambda _: None)(i)
        if isinstance(self.source, GivenMasks):
            return self.source.mask(self.dataset.image(i), given)
        image = self.dataset.image(i)
        if self.directory is None:
            return self.source.mask(image, given)
        content = f"{pixel_digest(image)} {self.mask_digest}"
        place = self.directory / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.png"
        if place.exists():
            try:
                kept = read_mask(place)
                if kept.shape == image.shape[:2]:
                    return kept
                raise DataError("a mask of another size")
            except DataError:
                log.warning("%s: a kept mask cannot be read; it is made again", place)
        made = self.source.mask(image, given)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # not synced: what a lost machine takes with it is made again
            begun = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
            Image.fromarray(made).save(begun, "PNG")
            os.replace(begun, place)
        except OSError as error:
            log.warning(
                "%s: masks cannot be kept there (%s); they are made again next time", self.directory, error.strerror
            )
            self.directory = None
        return made

    def make(self, threads: int = 2, progress: bool = True) -> None:
        """Make all masks now, several at once; OpenCV and onnxruntime let go of Python's lock."""
        if isinstance(self.source, GivenMasks) or self.directory is None:
            return
        self.mask(0)  # opens what is opened once
        with ThreadPoolExecutor(threads) as pool:
            rows = tqdm(range(len(self)), desc="masks", unit="img", disable=not progress, delay=2, leave=False)
            for _ in pool.map(self._found, rows):
                pass
