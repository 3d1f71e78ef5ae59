"""Sources and counterfactuals side by side, for notebooks.

pairs("OUT/shards", 8, sources=train)       # of a data set that can give its images by key
pairs("OUT/shards", 8)                      # without it, a source's null intervention stands in, where it has one
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfaug.data.images import Pixels, to_pil
from cfaug.errors import UsageError
from cfaug.offline.format import Record
from cfaug.offline.inspect.cells import NULL, value_text
from cfaug.offline.read import ShardReader, key_hash

SHOWN = 128  # px that a small image is enlarged to, without smoothing


class Sources(Protocol):
    """What gives the source images: every AttributeDataset."""

    def __len__(self) -> int: ...
    def key(self, i: int, /) -> str: ...
    def image(self, i: int, /) -> Pixels: ...


@dataclass(frozen=True)
class Pair:
    """A counterfactual ``made``, its record, and its ``source``: None where nobody has it. ``kind``: "source" or a stand-in's name."""

    source: Pixels | None
    made: Pixels
    record: Record
    kind: str = "source"


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """Some pairs, shown side by side in a notebook."""

    found: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: Any) -> Any:
        return self.found[i]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.found)

    def _repr_html_(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:16px">{"".join(map(_figure, self.found))}</div>'


def pairs(place: str | Path | ShardReader, n: int = 8, sources: Sources | None = None, seed: int = 0) -> Pairs:
    """At most ``n`` counterfactuals, drawn by ``seed``, each with its source.

    Raises:
        UsageError: ``n`` below 1; ``sources`` without an image of the first pair, so probably of another data set or split.
        ShardError: nothing is committed, or a sample is not what the manifest vouches for.
    """
    if n < 1:
        raise UsageError(f"expected at least one pair, got {n}; write pairs(place, 8)")
    reader = place if isinstance(place, ShardReader) else ShardReader(place)
    made = np.flatnonzero(~reader.nulls)
    chosen = np.sort(np.random.default_rng(seed).permutation(made)[:n]).tolist()
    records = [reader.record(i) for i in chosen]
    wanted = {record["source_key"] for record in records}
    where = {} if sources is None else {k: i for i in range(len(sources)) if (k := sources.key(i)) in wanted}
    if sources is not None and (lost := sorted(wanted - set(where))):
        raise UsageError(
            f"expected the data set that the shards were made of, got one without {lost[0]!r}; give its split {records[0]['split']}"
        )
    found = []
    for i, record in zip(chosen, records):
        key = record["source_key"]
        source = _null(reader, key) if sources is None else sources.image(where[key])
        kind = NULL if sources is None else "source"
        found.append(Pair(source, reader.image(i), record, kind))
    return Pairs(tuple(found))


def _null(reader: ShardReader, key: str) -> Pixels | None:
    place = reader.by_key.find(key_hash(key))
    if not place.nulls:
        return None
    return reader.image(int(reader.by_key.rows[place.start + place.counterfactuals]))


def _figure(pair: Pair) -> str:
    record = pair.record
    done = ", ".join(f"{name}={value_text(value)}" for name, value in record["do"].items())
    was = ", ".join(f"{name}={value_text(record['factual'].get(name))}" for name in record["do"])
    caption = f"{escape(record['source_key'])}<br>{escape(was)} &rarr; do({escape(done)})"
    images = [(pair.source, f"{pair.kind} of {record['source_key']}"), (pair.made, f"do({done})")]
    shown = "".join(_image(image, words) for image, words in images if image is not None)
    return (
        f'<figure style="margin:0;font:12px sans-serif"><div>{shown}</div><figcaption>{caption}</figcaption></figure>'
    )


def _image(image: Pixels, words: str) -> str:
    stream = io.BytesIO()
    to_pil(image).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    style = f"height:{max(SHOWN, image.shape[0])}px;image-rendering:pixelated;margin-right:4px"
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}" title="{escape(words)}" style="{style}">'
