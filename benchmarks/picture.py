"""The README's picture, from a run: rows of factual images, their reconstructions, and counterfactuals.

python benchmarks/picture.py RUN docs/counterfactuals.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS, SIZE, GAP = 16, 48, 4


def main(run: str, target: str) -> None:
    arrays = np.load(Path(run) / "evaluation" / "images.npz")
    rows = json.loads((Path(run) / "evaluation" / "figures.json").read_text())["rows"]
    chosen = list(range(min(COLUMNS, len(rows))))  # the first of the plan, which is shuffled: no choosing
    lines = [arrays[name][chosen] for name in ("factual", "reconstruction", "counterfactual")]
    canvas = Image.new("RGB", (len(chosen) * (SIZE + GAP) + GAP, 3 * (SIZE + GAP) + GAP), "white")
    for y, line in enumerate(lines):
        for x, pixels in enumerate(line):
            tile = Image.fromarray(pixels.squeeze()).convert("RGB").resize((SIZE, SIZE), Image.Resampling.NEAREST)
            canvas.paste(tile, (GAP + x * (SIZE + GAP), GAP + y * (SIZE + GAP)))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    canvas.save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
