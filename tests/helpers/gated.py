"""A stand-in model that draws, and a gate that rejects by what it drew: for the writing of gated shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfaug.data.micro_batch import Sources
from cfaug.decode.mechanism import Capabilities
from helpers import tiny


class Drawing(tiny.TinyModel):
    """A model that another seed makes another image with."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("exact", stochastic=True)


@dataclass(frozen=True)
class ByPixel:
    """Rejects by a pixel that the row's seed decides."""

    retries: int = 3
    digest: str = "by pixel"

    def __call__(self, images: Any, records: Any, sources: Sources) -> list[bool | str]:
        answers: list[bool | str] = []
        for image, row, seed in zip(images, records, sources.seeds):
            assert row["seed"] == seed
            answers.append(True if int(image.astype(int).sum()) % 2 else "even")
        return answers
