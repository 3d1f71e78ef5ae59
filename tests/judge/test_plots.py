"""Charts of the report: every value is drawn where it belongs, in the page's colours, and no name gets out of its text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from cfaug.judge.charts import Chart, Line
from cfaug.judge.plots import dots, scatter

CHART = Chart(["before", "after"], [Line("a", "n 3", [[0.25, 0.5], [0.75]]), Line("b", "", [[0.0], []])])
MARK = re.compile(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"')


def test_every_value_is_a_mark_at_its_place() -> None:
    found = [(float(x), float(y)) for x, y in MARK.findall(dots(CHART, "t"))]
    legend = min(y for _, y in found)
    (quarter, first), (half, _), (zero, second), (three, _) = [mark for mark in found if mark[1] > legend]
    step = (half - zero) / 2
    assert quarter - zero == pytest.approx(step, abs=1e-3)
    assert three - zero == pytest.approx(3 * step, abs=1e-3)
    assert first < second


def test_a_chart_takes_its_colours_from_the_page() -> None:
    for svg in (dots(CHART, "t"), scatter([{"model": "cfaug-0", "change": 0.1, "worst": 0.5}], "t", "across")):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert "currentColor" in svg
        assert "var(--ours)" in svg


def test_a_chart_says_its_numbers_to_those_who_do_not_see_it() -> None:
    svg = dots(CHART, "accuracy")
    assert svg.count("<title>accuracy</title>") == 1
    assert "a: before 0.38, after 0.75; b: before 0.00" in svg


def test_hostile_names_stay_text() -> None:
    name = '</svg><script>alert("1")</script> $x_1$ --> & '
    svg = str(dots(Chart([name], [Line(name, name, [[0.5]])]), name))
    assert "<script" not in svg
    root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert name.strip() in "".join(root.itertext())


def test_two_charts_on_a_page_share_only_what_they_draw_alike() -> None:
    one, two = (set(re.findall(r' id="([^"]*)"', dots(CHART, title))) for title in ("one", "two"))
    shared = one & two
    assert all(
        re.search(f'<path id="{name}"|<clipPath id="{name}"', dots(CHART, "one")) for name in shared
    )  # drawn alike


def test_the_same_chart_is_the_same_bytes() -> None:
    assert dots(CHART, "t") == dots(CHART, "t")
