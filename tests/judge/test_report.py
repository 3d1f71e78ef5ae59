"""The report is one file, says what the rows say, escapes what it is given, and opens in a real browser in silence."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfaug.errors import CfaugError, UsageError
from cfaug.judge import summarise
from cfaug.judge.drawings import scale_colour
from cfaug.judge.report import ReportData, render_report, verdict, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_nothing_external_and_everything_there(report: ReportData) -> None:
    page = render_report(report)
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    assert "<script" not in page
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == 4 * 6
    for word in (
        "digit=<wbr>3,<wbr> foreground=<wbr>red",
        "The worst reconstructions",
        "do(<wbr>foreground=<wbr>lime)",
    ):
        assert word in page
    assert "A reader of attributes &lt;cannot&gt; see what a classifier sees &amp; uses." in page
    for part in ("results", "images", "confounding", "axioms", "losses", "leaks", "assumptions", "notes", "run"):
        assert f'<section id="{part}">' in page


def test_the_verdict_follows_the_numbers(rows: list[dict[str, Any]]) -> None:
    def plain(found: list[dict[str, Any]]) -> str:
        return verdict(summarise(found)).replace("\u00a0", " ")

    ours = summarise(rows)[4].worst[0]
    assert f"classified correctly in {100 * ours:.1f} %" in plain(rows)
    assert "beats the best baseline, group_dro" in plain(rows)
    # exchange the names: the sentence must turn round
    swap = {"cfaug": "erm", "erm": "cfaug"}
    turned = plain([{**row, "method": swap.get(row["method"], row["method"])} for row in rows])
    assert "points LESS than plain training" in turned
    assert "does NOT beat the best baseline" in turned
    assert "NOT more than generated images alone" in turned
    assert "no comparison" in plain([row for row in rows if row["method"] == "erm"])


def test_an_empty_report_and_a_single_part(rows: list[dict[str, Any]]) -> None:
    assert "<h1>Only a title</h1>" in render_report(ReportData(title="Only a title"))
    page = render_report(ReportData(title="t", rows=rows[:1], target="digit", spurious=["foreground"]))
    assert "no comparison" in page
    assert "Each shortcut on its own" not in page


def test_losses_are_signed_points_with_their_spread_and_leaks_say_their_chance(report: ReportData) -> None:
    page = render_report(report).replace("\u00a0", " ")
    losses = page[page.index('<section id="losses">') : page.index('<section id="leaks">')]
    assert "trained on 6000 images of each kind" in losses
    assert "mean of 3 seeds" in losses
    for text in ("90.8 %", "74.2 %", "72.9 %", "+0.1<small>-0.4 to +0.6</small>", "+1.3<small>+0.2 to +2.4</small>"):
        assert text in losses
    assert "chance 10 %" in page[page.index('<section id="leaks">') :]
    assert report.losses is not None
    once = render_report(dataclasses.replace(report, losses=dataclasses.replace(report.losses, seeds=1), leaks=()))
    assert "mean of 1 seed." in once
    assert "-0.4 to" not in once  # one seed has no spread
    assert '<section id="leaks">' not in once
    assert '<section id="losses">' not in render_report(dataclasses.replace(report, losses=None))


def test_captions_must_fit(report: ReportData) -> None:
    example = dataclasses.replace(report.grids["A random draw"][0], captions=["one"])
    with pytest.raises(UsageError, match="one caption"):
        render_report(dataclasses.replace(report, grids={"x": [example]}))


def test_grey_images_are_shown(report: ReportData) -> None:
    grey = np.zeros((8, 8, 1), np.uint8)
    example = dataclasses.replace(report.grids["A random draw"][0], factual=grey)
    assert "data:image/png" in render_report(ReportData(title="t", grids={"x": [example]}))


def test_half_a_report_is_never_left(tmp_path: Path, report: ReportData) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(CfaugError, match="cannot write the report"):
        write_report(tmp_path / "report.html", report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_cell_colours_run_over_the_range() -> None:
    assert len({scale_colour(v)[0] for v in np.linspace(0, 1, 11)}) == 11
    assert scale_colour(0.0)[1] == "#ffffff"
    assert scale_colour(0.5)[1] == "#1b1b1b"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_opens_in_a_real_browser_without_an_error(tmp_path: Path, report: ReportData) -> None:
    page = write_report(tmp_path / "report.html", report)
    shot = tmp_path / "page.png"
    assert console(page, tmp_path, shot) == []
    from PIL import Image

    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 100  # something was painted: images, bars and text
    # and the check can fail: an address in the page is a console error, because the page forbids itself any
    page.write_text(page.read_text().replace("</main>", '<img src="https://example.org/x.png"></main>'))
    assert any("Content Security Policy" in line for line in console(page, tmp_path, shot))


def console(page: Path, directory: Path, shot: Path) -> list[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        "--window-size=1180,2400", f"--user-data-dir={directory / 'profile'}", f"--screenshot={shot}", page.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
