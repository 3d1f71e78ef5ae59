"""The README's picture of photographs, from a finished run: sources, and below each its first two counterfactuals.

    python benchmarks/picture_photographs.py RUN DATA docs/photographs.png

RUN has shards of two counterfactuals an image, DATA is its folder with metadata.csv. The columns are the first sources of the shards whose two
counterfactuals show two other scenes; nobody looked at them before. 256 colours keep the file small.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from cfaug.offline import ShardReader

COLUMNS, SIZE, GAP = 9, 92, 3


def chosen(reader: ShardReader) -> dict[str, list[int]]:
    """Source key -> its two samples, for the first ``COLUMNS`` sources that have two samples with other values than their own."""
    found: dict[str, list[int]] = {}
    shown: dict[str, list[object]] = {}
    for i in range(len(reader)):
        record = reader.record(i)
        source, values = record["source_key"], record["do"]
        changed = bool(values) and all(record["factual"][name] != value for name, value in values.items())
        if changed and values not in shown.setdefault(source, []):
            shown[source].append(values)
            found.setdefault(source, []).append(i)
    return {source: two[:2] for source, two in found.items() if len(two) > 1}


def main(run: str, data: str, target: str) -> None:
    reader = ShardReader(Path(run) / "shards")
    columns = list(chosen(reader).items())[:COLUMNS]
    canvas = Image.new("RGB", (len(columns) * (SIZE + GAP) - GAP, 3 * (SIZE + GAP) - GAP), "white")
    for x, (source, samples) in enumerate(columns):
        line = [Image.open(Path(data) / source).convert("RGB"), *(reader.picture(i) for i in samples)]
        for y, picture in enumerate(line):
            tile = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (x * (SIZE + GAP), y * (SIZE + GAP)))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.FLOYDSTEINBERG).save(
        target, optimize=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
