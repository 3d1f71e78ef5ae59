"""The data of the loops: an ImageFolder of coloured digits, and shards of counterfactuals of its training images.

    python make_data.py DATA

    DATA/train/5/0123-lime.png     scikit-learn's handwritten 3, 5, 8 and 9 (8 x 8 pixels), the four that look most alike;
                                   in train the colour is the digit's own with probability --rho
    DATA/test/5/0456-red.png       other digits, each once in every colour: the colour says nothing
    DATA/*/metadata.csv            file_name, split, digit, colour
    DATA/counterfactuals/          shards: two counterfactuals of every training image, each colour as often as the others in a digit

The images are grey times colour, and every colour has a channel of 255, so the grey can be read back exactly and the
recolouring model below is an EXACT counterfactual. It stands in for a trained decoder: the loops show where the line goes,
not how good a decoder is. For a fitted SCM and a trained decoder see `cfaug demo`.

Data: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; as shipped in scikit-learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cfaug.data import FolderDataset, Schema
from cfaug.offline import balance_groups, generate
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {"3": (255, 60, 60), "5": (60, 255, 60), "8": (90, 90, 255), "9": (255, 255, 60)}
NAMES = {"3": "red", "5": "lime", "8": "blue", "9": "yellow"}  # the digit's own colour
PALETTE = {NAMES[digit]: colour for digit, colour in COLOURS.items()}
TRAIN = 512


def paint(grey: np.ndarray, colour: str) -> np.ndarray:
    """Grey (H, W) uint8 in a colour: uint8 (H, W, 3), round(grey * colour / 255)."""
    return np.round(grey[..., None] / 255 * np.array(PALETTE[colour])).astype(np.uint8)


@dataclass(frozen=True)
class Recolouring:
    """image = grey * colour: abduct reads the grey back, act + predict paint it in the colour that was asked for."""

    schema: Schema
    digest: str = "exact recolouring, 1"

    def abduct(self, images: torch.Tensor, attributes: pd.DataFrame, **_: Any) -> tuple[torch.Tensor, pd.DataFrame]:
        return (images.amax(dim=1, keepdim=True) + 1) / 2, attributes

    def act(self, interventions: Sequence[Any]) -> Acted:
        return Acted(interventions)


@dataclass(frozen=True)
class Acted:
    """The model under interventions, one a row."""

    interventions: Sequence[Any]

    def predict(self, noise: tuple[torch.Tensor, pd.DataFrame]) -> tuple[torch.Tensor, pd.DataFrame]:
        grey, factual = noise
        table = factual.assign(
            colour=[do.assignments.get("colour", own) for do, own in zip(self.interventions, factual["colour"])]
        )
        colours = torch.tensor([PALETTE[name] for name in table["colour"]])[:, :, None, None] / 255
        return grey * colours * 2 - 1, table


def write_images(root: Path, rho: float, seed: int) -> None:
    data, rng = load_digits(), np.random.default_rng(seed)
    names = list(NAMES.values())
    rows = rng.permutation(np.flatnonzero(np.isin(data.target, [int(d) for d in NAMES])))
    for split, chosen in (("train", rows[:TRAIN]), ("test", rows[TRAIN:])):
        found = []
        for row in chosen:
            digit, grey = str(data.target[row]), np.round(data.images[row] / 16 * 255).astype(np.uint8)
            own = NAMES[digit] if rng.random() < rho else str(rng.choice(names))
            for colour in [own] if split == "train" else names:
                path = root / split / digit / f"{row:04d}-{colour}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(paint(grey, colour)).save(path)
                found.append((f"{digit}/{path.name}", split, digit, colour))
        table = pd.DataFrame(sorted(found), columns=["file_name", "split", "digit", "colour"])
        table.to_csv(root / split / "metadata.csv", index=False)


def write_counterfactuals(root: Path, seed: int) -> None:
    values = {"digit": list(NAMES), "colour": list(PALETTE)}
    train = FolderDataset(root / "train", target="digit", spurious=["colour"], values=values)
    plan = balance_groups(train.table, train.schema, per_image=2, seed=seed)
    generate(Recolouring(train.schema), train, plan, out=root / "counterfactuals", workers=0, progress=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rho", type=float, default=0.95, help="how strongly the colour follows the digit in train")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_images(arguments.root, arguments.rho, arguments.seed)
    write_counterfactuals(arguments.root, arguments.seed)
