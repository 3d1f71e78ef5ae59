"""Images that were edited elsewhere, as an image mechanism: it has those of planned rows and cannot make any other.

    abduct:   n = (x, source key, seed)
    predict:  x' = the edited image of (source key, seed), brought to the size of x, where an attribute is affected; else x

It keeps a reference of the folder and the sha256 of every file, never a copy: a file that was changed since is refused when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from cfaug.data import Schema
from cfaug.data.files import expand, replace_file
from cfaug.data.images import Pixels, as_grey, as_rgb, decode
from cfaug.data.micro_batch import Sources
from cfaug.data.source_types import TRAINED
from cfaug.decode import save_decoder
from cfaug.decode.mechanism import Capabilities, differing
from cfaug.decode.pixel_mechanism import PixelMechanism, as_images
from cfaug.errors import DataError, UsageError


@dataclass(frozen=True)
class EditedFile:
    """An edited image: its file below the folder, and the sha256 (hex) of that."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ImportedNoise:
    """What abduction returns: uint8 images (B, H, W, C), source keys, seeds and factual values."""

    images: Pixels
    keys: Sequence[str]
    seeds: Sequence[int]
    table: pd.DataFrame
    device: torch.device | str = "cpu"


class ImportedDecoder(PixelMechanism):
    """Edited images by source and seed.

    Args:
        schema: the attributes, with statistics.
        parents: the image's parents in the causal graph.
        folder: where the edited images are.
        edits: (source key, seed of the plan's row) -> the file of its image.
        source_type: how the images came to be (:mod:`cfaug.data.source_types`).
    """

    kind = "imported"

    def __init__(
        self,
        schema: Schema,
        parents: Collection[str],
        folder: str | Path = ".",
        edits: Mapping[tuple[str, int], EditedFile] | None = None,
        source_type: str = TRAINED,
    ) -> None:
        super().__init__(schema, parents)
        self.folder, self.edits, self.source_type = expand(folder), dict(edits or {}), source_type

    @property
    def capabilities(self) -> Capabilities:
        """Null interventions are exact, any intervention has an image of its own, and there are those of the table alone."""
        hides = frozenset(name for name in self.parents if name != self.schema.target)
        return Capabilities(
            "exact", redraws_own_value=True, hides=hides, imported=True, source_type=self.source_type
        )  # fmt: skip

    def has(self, source_key: str, seed: int) -> bool:
        """Whether there is an edited image of this row."""
        return (source_key, seed) in self.edits

    def abduct(self, sources: Sources) -> ImportedNoise:
        """Keep the images and whose they are."""
        return ImportedNoise(sources.pixels, sources.keys, sources.seeds, sources.table, sources.images.device)

    def predict(
        self,
        noise: ImportedNoise,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]] | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """The edited images of the affected rows; of ``affected`` None, those whose attributes differ.

        Raises:
            UsageError: a row without an edited image, a strength.
            DataError: a file that is missing, cannot be decoded, or has changed since it was imported.
        """
        if strength not in (None, 1):
            raise UsageError(f"expected no strength for imported images, got {strength}; edit them again")
        if affected is None:
            affected = differing(noise.table, attributes, self.parents)
        made = []
        for image, key, seed, names in zip(noise.images, noise.keys, noise.seeds, affected, strict=True):
            made.append(in_shape(self._read(key, seed), image.shape) if names else image)
        return as_images(made, noise.device)

    def _read(self, key: str, seed: int) -> Pixels:
        edit = self.edits.get((key, seed))
        if edit is None:
            raise UsageError(
                f"expected a planned intervention on {key!r}, got one with seed {seed}, of which no image was imported; ask only for rows of the plan"
            )
        path = self.folder / edit.name
        content = read_file(path)
        if hashlib.sha256(content).hexdigest() != edit.sha256:
            raise DataError(f"{path}: expected the file that was imported, got a different one; import it again")
        return decode(content, path).pixels

    # -- disk ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """sha256 (hex) over the table and the files' sha256, wherever the folder is."""
        return save_decoder.digest(self._description(), {})

    def _description(self) -> dict[str, Any]:
        return {
            "format": save_decoder.FORMAT, "kind": self.kind, "schema": self.schema.to_json(), "parents": list(self.parents),
            "source_type": self.source_type,
            "edits": [[*row, *dataclasses.astuple(edit)] for row, edit in sorted(self.edits.items())],
        }  # fmt: skip

    def save(self, directory: str | Path) -> None:
        """Write ``decoder.json``. A folder within the run is written relative to ``directory``, so that the run can be moved."""
        directory = expand(directory)
        directory.mkdir(parents=True, exist_ok=True)
        folder, place = self.folder.resolve(), directory.resolve()
        inside = folder.is_relative_to(place.parent)
        content = {
            **self._description(),
            "digest": self.digest,
            "folder": os.path.relpath(folder, place) if inside else str(folder),
        }
        replace_file(directory / "decoder.json", json.dumps(content, indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> ImportedDecoder:
        """Read what :meth:`save` wrote; the images are not opened. ShardError for a damaged file."""
        directory = expand(directory)
        try:
            content = json.loads((directory / "decoder.json").read_text(encoding="utf-8"))
            edits = {(str(key), int(seed)): EditedFile(name, sha256) for key, seed, name, sha256 in content["edits"]}
            schema, folder = Schema.from_json(content["schema"]), Path(os.path.normpath(directory / content["folder"]))
            decoder = cls(schema, content["parents"], folder, edits, content["source_type"])
            whole = decoder.digest == content["digest"]
        except Exception as error:  # JSON and the schema each raise their own
            raise save_decoder.corrupt(directory, error) from None
        if not whole:
            raise save_decoder.corrupt(directory, "a table with a different digest")
        return decoder


def read_file(path: Path) -> bytes:
    """The bytes of an edited image; DataError where there is no such file that may be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected an edited image, got {error.strerror}; put it back") from None


def in_shape(pixels: Pixels, shape: Sequence[int]) -> Pixels:
    """An image, uint8 (H, W, C), in another ``shape``: averaged over areas where it shrinks, else cubic; grey and RGB become one another."""
    height, width, channels = shape
    if pixels.shape[2] != channels:
        pixels = as_rgb(pixels) if channels == 3 else as_grey(pixels)[..., None]
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    scaled = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(scaled, dtype=np.uint8).reshape(height, width, channels)
