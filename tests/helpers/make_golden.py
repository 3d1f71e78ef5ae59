"""How shards/golden was made: ``python tests/offline/make_golden.py shards/golden``. Run once for each format number.

Eight samples: six interventions and two reconstructions of scikit-learn's handwritten digits 0 to 3 (8x8, tinted),
by the tiny model of these tests. Written once and never again: tomorrow's reader has to read yesterday's bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from cfaug.causal.intervention import Intervention, do
from cfaug.data import ArrayDataset
from cfaug.offline import Plan, PlanRow, generate
from helpers import tiny

DOS: list[Intervention] = [
    do(colour="red", ground="light", thickness=0.5),
    do(colour="blue", ground="dark", thickness=-0.25),
    do(colour="green", ground="light", thickness=1.0),
    do(colour="red", ground="dark", thickness=0.0),
    do(colour="green", ground="dark", thickness=0.75),
    do(colour="blue", ground="light", thickness=-1.5),
    do(),
    do(),
]


def make(out: Path) -> None:
    """Write the shard, its index and the manifest into `out`."""
    grey = load_digits().images[:3] / 16
    tints = np.array([[64, 64, 255], [64, 255, 64], [255, 64, 64]])
    images = np.round(grey[..., None] * tints[:, None, None]).astype(np.uint8)
    table = pd.DataFrame(
        {
            "digit": ["0", "1", "2"],
            "colour": ["blue", "green", "red"],
            "ground": ["dark", "dark", "light"],
            "thickness": [0.5, -0.5, 0.0],
        },
        index=["digits-0000", "digits-0001", "digits-0002"],
    )
    dataset = ArrayDataset(images, table, tiny.schema(), split="train")
    rows = [PlanRow(f"train-{i:09d}", f"digits-{i % 3:04d}", d, 1000 + i, 0, i // 3) for i, d in enumerate(DOS)]
    with tempfile.TemporaryDirectory() as work:
        generate(tiny.model(), dataset, Plan(rows), work, workers=0, batch_size=8, progress=False)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("cf-train-000000.tar", "cf-train-000000.index.jsonl", "manifest.jsonl"):
            shutil.copyfile(Path(work, "shards", name), out / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
