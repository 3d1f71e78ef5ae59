"""The gallery: worst first by any measure, below 5 MB, and by keys, on paper and for screen readers in a real browser."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser, browser

from cfaug.judge.gallery import Pair, difference, gallery
from cfaug.judge.report import ReportData, render_report, write_report

AXE = os.environ.get("CFAUG_AXE", "")  # axe.min.js of the npm package axe-core


def real(test: Any) -> Any:
    """A test of seconds, in a real browser."""
    reason = "Chromium is not installed (apt-get install chromium)"
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason=reason)(test))


def pair(i: int, side: int = 8, **measures: float) -> Pair:
    rng = np.random.default_rng(i)
    factual, made = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(2))
    mask = np.zeros((side, side, 1), np.uint8)
    pictures = {
        "factual": factual,
        "counterfactual": made,
        "difference": difference(factual, made),
        "mask": mask,
        "null": factual,
    }
    return Pair(f"image-{i}", "digit=3, foreground=red", "do(foreground=lime)", pictures, {"change": i / 1000, **measures}, "a note")  # fmt: skip


def test_the_worst_come_first_and_what_is_not_known_last() -> None:
    found = gallery([pair(0, margin=0.5), pair(1, margin=0.1, flip=0.2), pair(2), pair(3, margin=0.3, flip=0.9)])
    assert [key for key, _, _ in found["sorts"]] == ["margin", "change", "flip"]
    assert [row["pair"].source for row in found["rows"]] == ["image-1", "image-3", "image-0", "image-2"]
    ranks = {row["pair"].source: row["ranks"] for row in found["rows"]}
    assert ranks["image-3"] == {"margin": 1, "change": 0, "flip": 0}
    assert ranks["image-2"]["margin"] == 3
    assert gallery([pair(0)])["sorts"] == []  # nothing to sort


def test_alternative_texts_say_source_do_and_group() -> None:
    texts = [alt for _, alt, _ in gallery([pair(0)])["rows"][0]["pictures"]]
    assert texts[0] == "factual image of image-0, group digit=3, foreground=red"
    assert texts[1] == "counterfactual of image-0, do(foreground=lime), group digit=3, foreground=red"
    assert texts[4] == "null intervention of image-0, do(), group digit=3, foreground=red"
    assert len(set(texts)) == 5


def test_a_difference_is_the_largest_over_channels() -> None:
    grey, colour = np.full((2, 2, 1), 10, np.uint8), np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = (10, 30, 0)
    assert difference(grey, colour)[..., 0].tolist() == [[20, 10], [10, 10]]


def test_two_hundred_sources_of_noise_stay_below_five_megabytes() -> None:
    """Noise is what compresses worst."""
    page = render_report(ReportData(title="t", gallery=[pair(i, 128) for i in range(200)]))
    assert page.count("<li data-change=") == 200
    assert 1_000_000 < len(page.encode()) < 5_000_000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, report: ReportData) -> Path:
    pairs = [pair(i, 48, margin=(37 * i % 60) / 60) for i in range(60)]
    place = tmp_path_factory.mktemp("gallery") / "report.html"
    remake = {"command": "cfaug run config.yaml --out NEW", "versions": "cfaug 1, torch 2"}
    data = dataclasses.replace(report, gallery=pairs, remake=remake, configuration={"seed": 0})
    return write_report(place, data)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("aiohttp", reason="real keys need aiohttp, which Hugging Face datasets brings")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


PLACE = "document.getElementById('large').open && document.getElementById('large-place').textContent"
FOCUS = "document.activeElement.getAttribute('aria-label')"
FIRST = "document.querySelector('#pairs li .said p.soft').innerText.split('\\n')[1]"


@real
def test_keys_lead_through_the_gallery(page: Path, shown: Browser) -> None:
    shown.open(page)
    shown.press("Tab")
    assert shown.run("document.activeElement.className") == "skip"
    shown.run("document.getElementById('sort').focus()")
    assert shown.run(FIRST) == "image-0"  # the least margin
    shown.press("ArrowDown")
    assert shown.run("document.getElementById('sort').value") == "change"
    assert shown.run(FIRST) == "image-59"
    assert shown.run("document.getElementById('sorted').textContent") == "sorted by change, worst first"
    shown.press("Tab", "Tab", "Enter")  # past "Skip the gallery"
    assert shown.run(PLACE) == "1 of 60"
    shown.press("ArrowRight", "ArrowRight")
    assert shown.run(PLACE) == "3 of 60"
    assert "image-57" in shown.run("document.getElementById('large-title').textContent")
    shown.press("ArrowLeft")
    assert shown.run(PLACE) == "2 of 60"
    shown.press("Escape")
    assert shown.run(PLACE) is False
    assert shown.run(FOCUS) == "Enlarge do(foreground=lime) of image-58"
    shown.run("document.querySelector('#pairs img').click()")
    assert shown.run(PLACE) == "1 of 60"
    shown.press("ArrowLeft", "Escape")  # the last one was folded away: all are shown, and it has the focus
    assert shown.run(FOCUS) == "Enlarge do(foreground=lime) of image-0"
    assert shown.run("document.querySelectorAll('.folded').length") == 0
    assert shown.console == []


@real
def test_paper_has_everything_and_cuts_nothing(page: Path, shown: Browser, tmp_path: Path) -> None:
    shown.open(page)
    pdf = shown.paper(tmp_path / "page.pdf").read_bytes()
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") > 1
    shown.open(page, width=740)  # a sheet of letter paper within the margins
    shown.call("Emulation.setEmulatedMedia", media="print")
    cut = "[...document.querySelectorAll('table, svg, pre, #pairs li, figure')].filter(e => e.getBoundingClientRect().right > 741).map(e => e.outerHTML.slice(0, 90))"
    assert shown.run(cut) == []
    assert shown.run("[...document.querySelectorAll('#pairs li')].every(e => e.getBoundingClientRect().height > 40)")
    shown.call("Emulation.setEmulatedMedia", media="")


@real
@pytest.mark.parametrize("width", [1180, 390])
def test_only_boxes_scroll_sideways(width: int, page: Path, shown: Browser) -> None:
    shown.open(page, width)
    assert shown.run("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))"
    assert shown.run(boxes)
    levels = "[...document.querySelectorAll('main h2, main h3, h1')].map(e => +e.tagName[1])"
    found = shown.run(levels)
    assert found[0] == 1
    assert max(np.diff(found)) <= 1


@real
@pytest.mark.skipif(not AXE, reason="axe-core is not here (npm install axe-core; CFAUG_AXE=.../axe-core/axe.min.js)")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(dark: bool, page: Path, shown: Browser) -> None:
    shown.call("Page.setBypassCSP", enabled=True)
    shown.open(page, dark=dark)
    shown.run(Path(AXE).read_text(encoding="utf-8") + ";0")
    asked = "axe.run().then(found => JSON.stringify(found.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 200)])))"
    found = json.loads(shown.run(asked))
    assert [one for one in found if one[0] in ("serious", "critical")] == []
    shown.run("document.querySelector('#pairs button').click()")
    found = json.loads(shown.run(asked))
    assert [one for one in found if one[0] in ("serious", "critical")] == []
    shown.call("Page.setBypassCSP", enabled=False)
