"""A drawn graph says what the graph says: no arrow passes behind a node that it has nothing to do with."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.judge.charts import graph_drawing


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.booleans(), min_size=10, max_size=10), st.lists(st.sampled_from([0, 0, 1]), min_size=10, max_size=10)
)
def test_no_arrow_runs_behind_a_node_or_leaves_the_drawing(arrows: list[bool], ties: list[int]) -> None:
    pairs = [(a, b) for i, a in enumerate("abcde") for b in "abcde"[i + 1 :]]
    edges = [p for p, there in zip(pairs, arrows) if there] + [(n, "image") for n in "abcde"]
    svg = graph_drawing([*"abcde", "image"], edges, [p for p, there in zip(pairs, ties) if there])
    width, height = (float(v) for v in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    down = sum(map(float, re.findall(r"translate\(0 (-?\d+)\)", svg)))
    boxes = [
        tuple(map(float, b))
        for b in re.findall(r'<rect x="([\d.]+)" y="([\d.-]+)" width="(\d+)" height="(\d+)" rx', svg)
    ]
    assert len(boxes) == 6
    t = np.linspace(0.02, 0.98, 60)
    for numbers in re.findall(r'<path d="M(\S+) (\S+) C(\S+) (\S+) (\S+) (\S+) (\S+) (\S+)" class="edge', svg):
        x, y = (
            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            for a, b, c, d in (map(float, numbers[0::2]), map(float, numbers[1::2]))
        )
        assert x.min() > 0
        assert x.max() < width
        assert (y + down).min() > 0
        assert (y + down).max() < height
        for left, top, wide, tall in boxes:
            assert not ((x > left) & (x < left + wide) & (y > top) & (y < top + tall)).any()
