"""Models that are wrong on purpose, each in one way: what a gate must find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from cfaug.causal import Intervention
from cfaug.data import AttributeDataset
from cfaug.data.images import to_float, to_uint8

FAULTS = ("ignores do", "leaks", "changes the label", "changes a care attribute", "blurs", "copies", "paints outside")
CRITERION = {
    "ignores do": "shown",
    "leaks": "shown",
    "changes the label": "kept",
    "changes a care attribute": "kept",
    "blurs": "near the data",
    "copies": "no copy",
    "paints outside": "unchanged",
}
"""Which criterion is meant to find which fault."""


@dataclass(frozen=True)
class _Noise:
    own: Any
    images: torch.Tensor
    table: pd.DataFrame
    seeds: Sequence[int]
    keys: Sequence[str]
    masks: torch.Tensor | None


class WrongModel:
    """``model`` with ``fault`` in every image; ``dataset`` has the images that it may copy, ``care`` names an attribute to change."""

    def __init__(
        self, model: Any, fault: str, dataset: AttributeDataset, care: str | None = None, blur: float = 2.0
    ) -> None:
        assert fault in FAULTS
        self.model, self.fault, self.dataset, self.care, self.blur = model, fault, dataset, care, blur
        self.table = model.schema.canonical(dataset.table)

    @property
    def schema(self) -> Any:
        return self.model.schema

    @property
    def digest(self) -> str:
        return f"{self.model.digest} that {self.fault}"

    @property
    def capabilities(self) -> Any:
        return self.model.capabilities

    @property
    def canvas(self) -> Any:
        return self.model.canvas

    def abduct(
        self, images: Any, attributes: pd.DataFrame, seed: Any, *, keys: Any = None, masks: Any = None
    ) -> _Noise:
        keys = list(map(str, attributes.index)) if keys is None else keys
        if self.fault == "changes the label":
            return self._of_others(images, attributes, seed, masks)
        own = self.model.abduct(images, attributes, seed, keys=keys, masks=masks)
        return _Noise(own, images, attributes, seed, keys, masks)

    def act(self, interventions: Sequence[Intervention]) -> _Acted:
        return _Acted(self, interventions)

    def _of_others(self, images: Any, attributes: pd.DataFrame, seeds: Any, masks: Any) -> _Noise:
        """The noise of training images of another class in place of the sources."""
        target = str(self.schema.target)
        rows = []
        for i, seed in enumerate(seeds):
            other = np.flatnonzero((self.table[target] != attributes[target].iloc[i]).to_numpy())
            rows.append(int(other[np.random.default_rng([seed, 1]).integers(len(other))]))
        pixels = torch.from_numpy(np.stack([self.dataset.image(i) for i in rows])).permute(0, 3, 1, 2)
        table = self.table.iloc[rows].set_axis(attributes.index)
        theirs = None
        if masks is not None:
            theirs = torch.from_numpy(np.stack([np.asarray(self.dataset.mask(i)) for i in rows]))[:, None].float() / 255
        keys = [self.dataset.key(i) for i in rows]
        own = self.model.abduct(to_float(pixels), table, seeds, keys=keys, masks=theirs)
        return _Noise(own, images, attributes, seeds, keys, masks)


class _Acted:
    def __init__(self, wrong: WrongModel, interventions: Sequence[Intervention]) -> None:
        self.wrong, self.interventions = wrong, list(interventions)

    def predict(self, noise: _Noise) -> tuple[torch.Tensor, pd.DataFrame]:
        wrong, model = self.wrong, self.wrong.model
        made, table = model.act(self.interventions).predict(noise.own)
        target = str(wrong.schema.target)
        if wrong.fault == "changes the label":
            table = table.copy()
            table[target] = noise.table[target].to_numpy()
        if wrong.fault == "ignores do":
            return noise.images.clone(), table
        if wrong.fault == "leaks":
            return (made + noise.images) / 2, table
        if wrong.fault == "changes a care attribute":
            assert wrong.care is not None
            levels = list(wrong.schema[wrong.care].categories)
            also = []
            for i, act in enumerate(self.interventions):
                now = str(table[wrong.care].iloc[i])
                other = [level for level in levels if level != now]
                drawn = other[int(np.random.default_rng([noise.seeds[i], 2]).integers(len(other)))]
                also.append(Intervention(tuple(sorted({**dict(act.items), wrong.care: drawn}.items()))))
            return model.act(also).predict(noise.own)[0], table
        return self._painted(made, noise, table), table

    def _painted(self, made: torch.Tensor, noise: _Noise, table: pd.DataFrame) -> torch.Tensor:
        pixels = to_uint8(made).permute(0, 2, 3, 1).contiguous().numpy()
        found = []
        for i, image in enumerate(pixels):
            rng = np.random.default_rng([noise.seeds[i], 3])
            if self.wrong.fault == "blurs":
                image = cv2.GaussianBlur(image, (0, 0), self.wrong.blur).reshape(image.shape)
            elif self.wrong.fault == "copies":
                image = self._copy(i, noise, table, rng)
            else:
                image = self._patched(image, i, noise, rng)
            found.append(image)
        return to_float(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous())

    def _copy(self, i: int, noise: _Noise, table: pd.DataFrame, rng: np.random.Generator) -> Any:
        """Another training image of the wanted values, or of the wanted class where none has them."""
        wrong = self.wrong
        same = (wrong.table == table.iloc[i]).all(axis=1).to_numpy()
        mine = wrong.table.index == noise.keys[i]
        rows = np.flatnonzero(same & ~mine)
        if not len(rows):
            target = str(wrong.schema.target)
            rows = np.flatnonzero((wrong.table[target] == table[target].iloc[i]).to_numpy() & ~mine)
        return wrong.dataset.image(int(rows[rng.integers(len(rows))]))

    def _patched(self, image: Any, i: int, noise: _Noise, rng: np.random.Generator) -> Any:
        """A patch of one colour in the middle of what an intervention on the background must keep; without a mask, outside all stamps' boxes."""
        height, width = image.shape[:2]
        inside = np.ones((height, width), bool) if noise.masks is None else noise.masks[i, 0].numpy() > 0.5
        for boxes in getattr(self.wrong.model.decoder, "boxes", {}).values():
            for left, top, right, bottom in boxes:
                inside[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1] = False
        rows, columns = (
            np.nonzero(cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)))
            if inside.any()
            else ([height // 2], [width // 2])
        )
        if not len(rows):
            rows, columns = np.nonzero(inside)
        place = int(rng.integers(len(rows)))
        side = max(2, height // 10)
        top, left = max(0, int(rows[place]) - side // 2), max(0, int(columns[place]) - side // 2)
        image = image.copy()
        image[top : top + side, left : left + side] = rng.integers(0, 256, image.shape[2])
        return image


@dataclass
class Recording:
    """A gate that keeps everything and remembers the margins of its criteria."""

    gate: Any
    found: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    digest: str = "recording"

    def __call__(self, images: Any, records: Any, sources: Any) -> list[bool]:
        for name, margins in self.gate.margins(images, records, sources).items():
            self.found.setdefault(name, []).extend(margins.tolist())
        return [True] * len(images)


Fault = Callable[..., Any]
