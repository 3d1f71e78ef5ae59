"""The gate: a filter between the model and the shard, and the one that is made of criteria.

    candidates (images, records, sources) -> margin of each criterion -> keep where no margin is below 0

What it rejects is drawn again with a new seed where the model draws at all (:mod:`cfaug.offline.make_shard`), and else left out of
its shard, counted, and named with its reason in the run's stats.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels
from cfaug.data.micro_batch import Sources
from cfaug.offline.format import Record

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


class Gate(Protocol):
    """Which of B counterfactual images to keep, asked once per micro-batch. Picklable.

    It must be a function of its arguments alone, because the bytes of a shard depend on it; its `digest` names it in the
    manifest. Null interventions are judged like the other images. It may have `retries`, how often a rejected row is drawn again
    with a new seed.
    """

    @property
    def digest(self) -> str: ...

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], records: Sequence[Record], sources: Sources
    ) -> Sequence[bool | str]:
        """B answers for B `images`, uint8 (H, W, C), with their records and the sources they were made from.

        True keeps an image, False rejects it, and a text rejects it and says why.
        """
        ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a gate is asked about, B images; what criteria compute in common is computed once."""

    images: Sequence[Pixels]
    records: Sequence[Record]
    sources: Sources
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, what: Hashable, compute: Callable[[Candidates], T]) -> T:
        """The result of `compute` for these candidates; `what` names it."""
        if what not in self._known:
            self._known[what] = compute(self)
        found: T = self._known[what]
        return found

    @property
    def pixels(self) -> Pixels:
        """The sources' images, uint8 (B, H, W, C)."""
        return self.once("pixels", lambda seen: seen.sources.pixels)

    @property
    def masks(self) -> Pixels | None:
        """The sources' masks, uint8 (B, H, W), 255 on the object; None where there are none."""
        return self.once("masks", lambda seen: seen.sources.mask_pixels)

    def __len__(self) -> int:
        return len(self.images)


class Criterion(Protocol):
    """One question about a candidate."""

    @property
    def name(self) -> str:
        """What it asks, in words that a report can show: "background shown"."""
        ...

    def margins(self, seen: Candidates) -> Floats:
        """(B,) how far each candidate is from being rejected; below 0 it is, NaN where the criterion abstains."""
        ...


@dataclass(frozen=True)
class CriteriaGate:
    """A gate that rejects what any of its criteria rejects.

    Attributes:
        criteria: each with a name of its own.
        digest: names everything that they depend on.
        retries: how often a rejected row is drawn again.
    """

    criteria: tuple[Criterion, ...]
    digest: str
    retries: int = 0

    def margins(self, images: Sequence[Pixels], records: Sequence[Record], sources: Sources) -> Mapping[str, Floats]:
        """Name of each criterion -> its margins (B,)."""
        seen = Candidates(images, records, sources)
        return {one.name: one.margins(seen) for one in self.criteria}

    def __call__(self, images: Sequence[Pixels], records: Sequence[Record], sources: Sources) -> Sequence[bool | str]:
        """True, or the names of the criteria that reject."""
        found = self.margins(images, records, sources)
        answers: list[bool | str] = []
        for i in range(len(images)):
            failed = [name for name, margins in found.items() if margins[i] < 0]
            answers.append(", ".join(failed) if failed else True)
        return answers
