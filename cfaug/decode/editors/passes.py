"""The passes of an edit: layer by layer, each in its region and pasted into what came before; and the round trips of null interventions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from cfaug.data.images import Pixels, as_grey, to_float
from cfaug.decode.diffusion.training import seed_of
from cfaug.decode.editors import adapters, backends, guidance, open_pipeline
from cfaug.decode.editors.backends import Edit, Traits
from cfaug.decode.editors.words import Words
from cfaug.decode.layered.layers import LAYERS
from cfaug.editor_config import EditorConfig


@dataclass(frozen=True)
class EditNoise:
    """What abduction returns: uint8 images (B, H, W, C), masks (B, H, W) or None, seeds and factual values."""

    images: Pixels
    masks: Pixels | None
    keys: Sequence[str]
    seeds: Sequence[int]
    table: pd.DataFrame
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Passes:
    """A pipeline at work: with what traits, settings, layers (attribute -> layer) and words."""

    pipe: Any
    traits: Traits
    editor: EditorConfig
    layers: Mapping[str, str]
    words: Words

    def edits(
        self, noise: EditNoise, rows: Sequence[int], attributes: pd.DataFrame, changed: Sequence[Collection[str]], size: tuple[int, int]
    ) -> dict[int, Pixels]:  # fmt: skip
        """The rows' images, edited layer by layer: what one pass draws, the next one sees, and the outline between them stays.

        A pass is asked for what it draws alone; the last one of a row for all that the row of ``attributes`` says.
        """
        found = {i: noise.images[i] for i in rows}
        now, then = _rows(noise.table), _rows(attributes)
        step = self.editor.batch if self.traits.batches and not self.editor.abduction.steps else 1
        for layer in LAYERS:
            own = {i: [name for name in changed[i] if self.layers.get(name, LAYERS[0]) == layer] for i in rows}
            left = [i for i in rows if own[i]]
            factual = {i: self.words.prompt(now[i], own[i]) for i in left}
            for i in left:
                last = layer == LAYERS[-1] or len(own[i]) == len(changed[i])
                now[i] = then[i] if last else {**now[i], **{name: then[i][name] for name in own[i]}}
            prompts = {i: self.words.prompt(now[i], own[i]) for i in left}
            for start in range(0, len(left), step):
                some = left[start : start + step]
                regions = [self.region(noise, i, own[i]) for i in some]
                edits = [
                    Edit(
                        open_pipeline.resized(found[i], size), _as_mask(region, size), prompts[i], factual[i],
                        int(noise.seeds[i]) if layer == LAYERS[0] else seed_of(int(noise.seeds[i]), 1),
                    )
                    for i, region in zip(some, regions)
                ]  # fmt: skip
                sources = [found[i] for i in some]

                def pasted(edits: Sequence[Edit], sources: Any = sources, regions: Any = regions) -> list[Pixels]:
                    drawn = np.round(self._drawn(edits).clip(0, 1) * 255).astype(np.uint8)
                    return [
                        _pasted(own, _as_source(new, own), region) for new, own, region in zip(drawn, sources, regions)
                    ]

                found.update(zip(some, guidance.best_of(pasted, edits, sources, self.editor.guide)))
        return found

    def _drawn(self, edits: Sequence[Edit]) -> backends.Floats:
        with guidance.steered(self.pipe, edits, self.editor.guide):
            if self.editor.abduction.steps:
                return adapters.doubly_abducted(self.pipe, self.traits, edits[0], self.editor)
            return backends.run(self.pipe, self.traits, edits, self.editor)

    def round_trips(self, noise: EditNoise, rows: Sequence[int], size: tuple[int, int]) -> dict[int, Pixels]:
        found = {}
        for start in range(0, len(rows), self.editor.batch):
            some = rows[start : start + self.editor.batch]
            pixels = np.stack([np.asarray(open_pipeline.resized(noise.images[i], size)) for i in some])
            back = backends.round_trip(self.pipe, to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()))
            for i, image in zip(some, back.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()):
                region = self.region(noise, i, tuple(self.layers))
                found[i] = _pasted(noise.images[i], _as_source(image, noise.images[i]), region)
        return found

    def region(self, noise: EditNoise, i: int, changed: Collection[str]) -> npt.NDArray[np.bool_] | None:
        """(H, W) where pixels may change; None: everywhere."""
        if noise.masks is None or not self.layers or any(name not in self.layers for name in changed):
            return None
        inside: npt.NDArray[np.bool_] = noise.masks[i] > 127
        found = np.zeros_like(inside)
        for name in changed:
            found |= inside if self.layers[name] == "foreground" else ~inside
        return found


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _as_mask(region: npt.NDArray[np.bool_] | None, size: tuple[int, int]) -> Image.Image | None:
    if region is None:
        return None
    return Image.fromarray(np.where(region, np.uint8(255), np.uint8(0))).resize(size[::-1], Image.Resampling.NEAREST)


def _as_source(made: Pixels, source: Pixels) -> Pixels:
    """An RGB image in the size and the channels of its source."""
    height, width, channels = source.shape
    picture = Image.fromarray(made)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return as_grey(pixels)[..., None] if channels == 1 else pixels


def _pasted(source: Pixels, made: Pixels, region: npt.NDArray[np.bool_] | None) -> Pixels:
    return made if region is None else np.where(region[..., None], made, source)
