"""The report is one file, says what the rows say, escapes what it is given, and opens in a real browser in silence."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import SCM, CausalGraph
from cfaug.causal.audit.assumptions import assumption_card
from cfaug.causal.audit.falsification import falsify
from cfaug.data import Attribute, Schema
from cfaug.errors import CfaugError, UsageError
from cfaug.judge import format_table, summarise
from cfaug.judge.advice import Advice
from cfaug.judge.charts import group_chart, scale_colour
from cfaug.judge.report import MOST_TESTS, ReportData, render_report, write_report
from cfaug.judge.sentences import headline, percent, verdict
from cfaug.judge.tables import beside

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_nothing_external_and_everything_there(report: ReportData) -> None:
    page = render_report(report)
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    assert page.count("<script>") == 1
    script = page[page.index("<script>") + 8 : page.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in page  # its own script and no other one
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


def test_losses_show_sign_and_spread_and_leaks_their_chance(report: ReportData) -> None:
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
    for value in np.linspace(0, 1, 101):
        light, dark = sorted((luminance(colour) for colour in scale_colour(value)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_the_headline_says_before_after_where_and_what_next(rows: list[dict[str, Any]]) -> None:
    summaries = summarise(rows)
    erm, ours = summaries[0], next(item for item in summaries if item.method == "cfaug")
    text = headline(summaries, Advice("cfaug", ("take cfaug: cfaug has the best worst group", "facts")))
    assert text.startswith(f"The accuracy of the worst group rises from {percent(erm.worst[0])} with plain training")
    assert f"to {percent(ours.worst[0])} with cfaug" in text
    for item in (erm, ours):
        low, high = (100 * end for end in item.worst_ci95)
        assert f"{item.worst_group.replace(',', ', ')}: 95\u00a0% interval {low:.0f} to {high:.0f}" in text
    assert text.endswith("; what to do next: take cfaug, which has the best worst group.")
    cheap = next(item for item in summaries if item.method == "group_dro")
    other = headline(summaries, Advice("group_dro", ("take group_dro: group_dro closes the gap",)))
    assert other.endswith(f"take group_dro ({percent(cheap.worst[0])}), which closes the gap.")
    swap = {"cfaug": "erm", "erm": "cfaug"}
    turned = summarise([{**row, "method": swap.get(row["method"], row["method"])} for row in rows])
    assert "FALLS from" in headline(turned, None)
    plain = summarise([row for row in rows if row["method"] == "erm"])
    assert headline(plain, None).startswith("Plain training (erm) classifies")
    assert headline(summarise([row for row in rows if row["method"] == "cfaug"]), None) == ""
    page = render_report(ReportData(title="t", rows=rows, target="digit", spurious=["foreground"]))
    assert page.index('class="headline"') < page.index("<table>") < page.index("<svg")


def test_the_group_chart_has_every_seed_and_its_twin_the_means(rows: list[dict[str, Any]]) -> None:
    chart = group_chart(rows, ["erm", "cfaug", "absent"], most=5)
    assert chart is not None
    assert chart.series == ["erm", "cfaug"]
    assert chart.left_out == 45
    means = [line.mean(0) for line in chart.lines]
    assert means == sorted(means)
    assert [len(some) for line in chart.lines for some in line.values] == [3] * 10
    assert group_chart(rows, ["absent"]) is None


def test_runs_side_by_side(rows: list[dict[str, Any]]) -> None:
    fewer = [row for row in rows if row["method"] != "oracle"]
    found = beside({"one": rows, "two": fewer})
    assert next(iter(found)) == "erm"
    assert found["oracle"][0] is not None
    assert found["oracle"][1] is None
    page = render_report(ReportData(title="t", compared={"one": rows, "two": fewer}))
    assert page.count("<svg") == 1
    assert 'id="results"' not in page
    assert (
        render_report(ReportData(title="t", compared=dict.fromkeys("abcd", rows))).count("<svg") == 0
    )  # the table alone


def with_causes(report: ReportData, text: str, **changes: Any) -> ReportData:
    """The report with a card and a falsification of its made-up colours: foreground follows the digit, background both."""
    rng = np.random.default_rng(0)
    digit = rng.integers(0, 2, 400)
    foreground = np.where(rng.random(400) < 0.8, digit, 1 - digit)
    background = np.where(rng.random(400) < 0.7, foreground, 1 - foreground)
    columns = {"digit": digit.astype(str), "foreground": foreground.astype(str), "background": background.astype(str)}
    table = pd.DataFrame(columns, index=[f"k{i}" for i in range(400)])
    table.loc[table.index[:8], "background"] = None
    schema = Schema([Attribute(n) for n in columns], "digit", ["foreground", "background"])
    graph = CausalGraph(text)
    found = {
        "card": assumption_card(SCM(graph, schema).fit(table), table),
        "falsification": falsify(table, schema, graph),
    }
    return dataclasses.replace(report, graph=graph, **(found | changes))


RIGHT = "digit -> foreground; foreground -> background; digit -> image; background -> image"


def section(page: str, name: str) -> str:
    start = page.index(f'<section id="{name}">')
    return re.sub(r"\s+", " ", page[start : page.index("</section>", start)])


def test_the_card_says_what_is_safe_identified_and_fitted(report: ReportData) -> None:
    tied = "digit <-> foreground; foreground ->? background; digit -> image; background -> image; foreground <-> background"
    part = section(render_report(with_causes(report, tied, assumptions=["It is <b>bold</b>."])), "assumptions")
    for text in (
        "confirmed by nobody: foreground -&gt;? background",
        "do(foreground): yes",
        "background &harr; foreground, digit &harr; foreground.",
        "<td>background</td><td>foreground</td><td>categorical</td>",
        '<td class="n">392</td>',
        "background in 8 rows.",
        "<td>background under do(foreground)</td>",
        '<td class="alarm">not identified</td>',
        "Pan and Bareinboim",
        "<li>It is &lt;b&gt;bold&lt;/b&gt;.</li>",
    ):
        assert text in part, text
    unsafe = section(
        render_report(with_causes(report, "foreground -> digit; digit -> image; background")), "assumptions"
    )
    assert '<li class="alarm">do(foreground): NO, foreground \u2192 digit' in unsafe
    flat = section(render_report(with_causes(report, "foreground; digit -> image; background")), "assumptions")
    assert "No attribute follows from a different one" in flat
    above = {"interventions": {"foreground": {}}}  # the diagnosis has the list: it is not there twice
    card = with_causes(report, RIGHT)
    assert "do(foreground): yes" in section(render_report(card), "assumptions")
    assert "do(foreground): yes" not in section(
        render_report(dataclasses.replace(card, diagnosis=above)), "assumptions"
    )


def test_unconfirmed_and_discovered_edges_are_marked(report: ReportData) -> None:
    from cfaug.causal.discover.discovery import discover

    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 300)
    table = pd.DataFrame({"x": x, "y": x + rng.normal(0, 1, 300)}, index=[f"k{i}" for i in range(300)])
    found = discover(
        table, Schema([Attribute("x", "continuous"), Attribute("y", "continuous")]), bootstraps=0
    ).to_json()
    assert "foreground &rarr; image ?" not in render_report(report)
    page = render_report(dataclasses.replace(report, graph=CausalGraph("foreground ->? image; digit -> image")))
    assert section(page, "assumptions").count("foreground &rarr; image ?") == 1
    assert "confirmed by nobody" in section(page, "assumptions")
    page = render_report(dataclasses.replace(report, discovery=found))
    edge = found["edges"][0]
    assert f"<td>{edge['a']} {edge['kind']} {edge['b']}</td>" in section(page, "discovery")


def test_empty_groups_are_said_in_page_and_table(rows: list[dict[str, Any]]) -> None:
    gone = "digit=1,foreground=red"
    emptied = [{**row, "groups": {**row["groups"], gone: {"n": 0, "accuracy": None}}} for row in rows]
    data = ReportData(title="t", rows=emptied, target="digit", spurious=["foreground", "background"])
    assert "1 of 50 groups have no test image" in section(render_report(data), "results")
    assert format_table(emptied).splitlines()[-1].startswith("1 of 50 groups have no test image and take no part")
    assert "no test image and" not in format_table(rows)
    assert 'class="empty"' in render_report(data)


def test_failing_tests_come_first_and_no_failure_proves_nothing(report: ReportData) -> None:
    right = section(render_report(with_causes(report, RIGHT)), "falsification")
    assert "none fails. That does not confirm the graph" in right
    assert "<details open>" in right
    assert "alarm" not in right
    assert '<td>background and digit</td><td>foreground</td><td class="n">392</td>' in right
    contradicted = with_causes(report, "background; digit; foreground; digit -> image")
    assert contradicted.falsification is not None
    wrong = section(render_report(contradicted), "falsification")
    assert f'<b class="alarm">{contradicted.falsification["failed"]} fail' in wrong
    shown = [row for row in re.findall(r"<tr>.*?</tr>", wrong) if "<th" not in row]
    failing = ['class="alarm">fails' in row for row in shown]
    assert failing == sorted(failing, reverse=True)
    assert any(failing)
    assert wrong.index("<details>") > wrong.rindex('class="alarm">fails')
    silent = section(
        render_report(with_causes(report, "digit -> foreground; foreground -> background; digit <-> background")),
        "falsification",
    )
    assert "implies no independence" in silent
    assert '<section id="falsification">' not in render_report(report)


def test_a_long_list_of_tests_is_cut_and_says_so(report: ReportData) -> None:
    base = with_causes(report, RIGHT)
    assert base.falsification is not None
    one = base.falsification["tests"][0]
    many = dict(base.falsification) | {"tests": [one] * (MOST_TESTS + 5), "tested": MOST_TESTS + 5, "complete": False}
    page = section(render_report(dataclasses.replace(base, falsification=many)), "falsification")
    assert page.count("<td>background and digit</td>") == MOST_TESTS
    assert f"The {MOST_TESTS} with the smallest p" in page
    assert "one separating set per pair" in page
    undecided = dict(one) | {"decided": False}
    page = section(
        render_report(dataclasses.replace(base, falsification=many | {"tests": [undecided]})), "falsification"
    )
    assert "not testable: too few rows" in page


@pytest.mark.slow  # nine seconds of a browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_opens_in_a_real_browser_without_an_error(tmp_path: Path, report: ReportData) -> None:
    page = write_report(tmp_path / "report.html", with_causes(report, RIGHT))
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
