"""The advice on a mechanism tells the region in which an attribute lives, and is not misled by rims, rounding or constant objects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import CausalGraph
from cfaug.config import Recipe
from cfaug.data import ArrayDataset, Attribute, Grouper, Schema
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.decoder_advice import advise_decoder

WARM, COLD, INK = np.array([200, 120, 70]), np.array([70, 120, 200]), np.array([235, 235, 220])


def advice(where: str, n: int = 120) -> str:
    """Of drawn digits, whose ``paper`` colours the given region: background, foreground or both."""
    rng = np.random.default_rng(0)
    papers, shapes = rng.choice(["warm", "cold"], n), rng.choice(["bar", "block"], n)
    images, masks = np.empty((n, 24, 24, 3), np.uint8), np.zeros((n, 24, 24), np.uint8)
    for i in range(n):
        top, left = rng.integers(2, 10, 2)
        masks[i, top : top + 10, left : left + (4 if shapes[i] == "bar" else 9)] = 255
        colour = WARM if papers[i] == "warm" else COLD
        grain = rng.normal(0, 15, (24, 24, 1))
        outer = (colour if where != "foreground" else np.array([90, 90, 90])) + grain
        inner = colour + grain if where != "background" else np.broadcast_to(INK, outer.shape)  # constant ink
        images[i] = np.where(masks[i][..., None] > 0, inner, outer).clip(0, 255)
    table = pd.DataFrame({"shape": shapes, "paper": papers}, index=[f"i{i}" for i in range(n)])
    schema = Schema([Attribute("shape"), Attribute("paper")], target="shape", spurious=["paper"]).fit(
        table, ["shape", "paper"]
    )
    data = ArrayDataset(images, table, schema, masks=masks)
    graph = CausalGraph("shape <-> paper; shape -> image; paper -> image")
    (line,) = advise_decoder(Recipe(), Inputs(data, data, data, None, graph, Grouper.fit(table, schema), ""))
    return line


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("background", "kind: layered, layers: {background: [paper]}"),
        ("foreground", "kind: layered, layers: {foreground: [paper]}"),
        ("both", "it is global"),
    ],
)
def test_the_region_is_that_of_the_attribute(where: str, said: str) -> None:
    assert said in advice(where)


def test_the_numbers_are_named() -> None:
    assert "of that of the background's mean colour" in advice("background")
