"""The self-contained report of a run: one HTML file, no external address, readable by a stranger.

One script of its own sorts and enlarges pictures; its digest is the only one that the page allows. The gallery begins with the worst
counterfactuals, every spurious attribute has its own worst group, and the verdict is computed
from the results rows. Everything comes in as plain data.
Not promised: that what is shown first is typical; it is the worst.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.causal import CausalGraph
from cfaug.causal.audit.assumptions import STATUS_WORDS, effect_words, pair_words
from cfaug.data.files import replace_file
from cfaug.errors import CfaugError, UsageError
from cfaug.judge import plots
from cfaug.judge.advice import Advice
from cfaug.judge.charts import Chart, Line, group_chart, group_matrix, picture_uri
from cfaug.judge.gallery import Pair, gallery
from cfaug.judge.sentences import baselines, headline, of_ours, percent, points, verdict
from cfaug.judge.tables import MethodSummary, attribute_gaps, beside, empty_groups, summarise

Pixels = npt.NDArray[np.uint8]

METHOD_NOTES: Mapping[str, str] = {
    "erm": "plain training on the real images",
    "class_resampling": "real images, every class equally often",
    "group_resampling": "real images, every group equally often",
    "group_dro": "real images, the worst group weighted up (Sagawa et al. 2020)",
    "subg": "real images, every group cut to the smallest (Idrissi et al. 2022)",
    "jtt": "real images, the errors of a first net weighted up (Liu et al. 2021)",
    "lisa": "real images mixed across groups (Yao et al. 2022)",
    "dfr": "plain features, the last layer fitted anew on balanced validation images (Kirichenko et al. 2023)",
    "ffr": "plain features, the last layer fitted anew on factual images and counterfactuals",
    "null_control": "real images and their reconstructions: is it only that generated images help?",
    "counterfactuals_only": "counterfactuals without the real images",
    "cfaug": "real images with counterfactuals mixed in",
    "cfaug+group_dro": "the mixture, the worst group weighted up",
    "cfaug+dfr": "features of the mixture, the last layer fitted anew on balanced validation images",
    "cfaug+consistency": "the mixture, an image and its counterfactual to be classified alike",
    "oracle": "the same images without the confounding: the ceiling, which no method may use",
}

MOST_TESTS = 30  # rows of one table of tests; those with a larger p are left out


@dataclass(frozen=True)
class Example:
    """One row of a grid: a factual image, its reconstruction, its counterfactuals; uint8 (H, W, 1 or 3).

    ``captions`` has one text per counterfactual (its intervention); ``note`` says why the row was chosen.
    """

    factual: Pixels
    factual_caption: str
    counterfactuals: Sequence[Pixels]
    captions: Sequence[str]
    reconstruction: Pixels | None = None
    note: str = ""


@dataclass(frozen=True)
class Axiom:
    """One measured property: name, value as text with its unit, and what a good value is."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class LossTable:
    """The same classifier trained on several kinds of images of the same sources, and what every step costs.

    ``rows``: (kind, what it is, accuracy per measure); ``losses``: (name, what it means, (mean, least, greatest seed) per
    measure); both in the order of ``measures``; fractions in [0, 1].
    """

    measures: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[float]]]
    losses: Sequence[tuple[str, str, Sequence[tuple[float, float, float]]]]
    images: int
    seeds: int


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows; an empty field is left out. ``rows`` are results rows (see ``result_row``).

    ``gallery``: pairs to sort and enlarge; ``grids``: heading -> further examples. ``advice``: which method the rows speak for. ``confounding_before`` / ``_after``: spurious attribute -> normalised mutual information with the
    target in [0, 1]. ``run``: facts such as the number of images; ``remake``: the command, seeds, digests, versions and timings, to be
    copied; ``configuration``: the resolved recipe.
    ``diagnosis``, ``falsification``, ``card`` and ``discovery`` are what ``cfaug.causal`` returns: ``diagnose``, ``falsify``,
    ``assumption_card`` and ``discover``; ``assumptions`` are further ones, beside the card's. ``audit``: lines, points and grids of
    :func:`cfaug.stages.audit_report.audit_section`; ``gate``: notes and charts of :func:`cfaug.stages.gate_figures.gate_section`;
    ``compared``: run -> its results rows, for a page of several runs.
    """

    title: str
    rows: Sequence[Mapping[str, Any]] = ()
    target: str = ""
    spurious: Sequence[str] = ()
    advice: Advice | None = None
    gallery: Sequence[Pair] = ()
    grids: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    confounding_before: Mapping[str, float] = field(default_factory=dict)
    confounding_after: Mapping[str, float] = field(default_factory=dict)
    graph: CausalGraph | None = None
    axioms: Sequence[Axiom] = ()
    losses: LossTable | None = None
    leaks: Sequence[Axiom] = ()
    assumptions: Sequence[str] = ()
    notes: Sequence[str] = ()
    run: Mapping[str, str] = field(default_factory=dict)
    remake: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] | None = None
    introduction: str = ""
    diagnosis: Mapping[str, Any] | None = None
    falsification: Mapping[str, Any] | None = None
    card: Mapping[str, Any] | None = None
    discovery: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    gate: Mapping[str, Any] | None = None
    compared: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def breakable(text: str) -> Any:
    """Escaped text that may wrap after "=", "(" and ",": a caption is narrower than an intervention."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([=(,])", r"\1<wbr>", str(escape(text))))


def _compared(summaries: Sequence[MethodSummary]) -> list[str]:
    """The methods that group by group pictures show: erm, the best baseline, cfaug and the oracle."""
    best = max(baselines(summaries), key=lambda s: s.worst[0], default=None)
    chosen = {"erm", "cfaug", "oracle", *([best.method] if best else [])}
    return [s.method for s in summaries if s.method in chosen]


def _matrices(data: ReportData, summaries: Sequence[MethodSummary]) -> dict[str, list[dict[str, Any]]]:
    """Spurious attribute -> one matrix per compared method."""
    chosen = _compared(summaries)
    found = {
        name: [panel for method in chosen if (panel := group_matrix(data.rows, method, data.target, name))]
        for name in data.spurious
    }
    return {name: panels for name, panels in found.items() if panels}


def template(name: str) -> Any:
    """A page of this room, as jinja2 has it, with the filters that write numbers and pictures."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )  # fmt: skip
    environment.filters |= {
        "percent": percent,
        "whole": partial(percent, digits=0),
        "points": points,
        "picture": picture_uri,
        "sections": sections,
        "breakable": breakable,
        "pair_words": pair_words,
        "effect_words": effect_words,
        "dots": plots.dots,
        "scatter": plots.scatter,
    }
    return environment.get_template(name)


def sections(body: str) -> list[tuple[str, str]]:
    """(id, heading) of each section of a page, for its table of contents."""
    return re.findall(r'<section id="(\w+)">\s*<h2>(.*?)</h2>', body)


def _own(name: str) -> tuple[Any, str]:
    """A file of this room that goes into the page as it is, and its digest as a Content-Security-Policy has it."""
    from markupsafe import Markup

    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return Markup(text), "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _compared_chart(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    if not 1 < len(runs) <= plots.MOST_SERIES:
        return None
    lines = [
        Line(name, "", [item.worst_by_seed if item else () for item in items]) for name, items in beside(runs).items()
    ]
    return Chart(list(runs), lines)


def _method_chart(summaries: Sequence[MethodSummary]) -> Chart:
    lines = [Line(item.method, "", [[item.average[0]], item.worst_by_seed]) for item in summaries]
    return Chart(["average over test images", "worst group, per seed"], lines)


def _confounding_chart(data: ReportData) -> Chart:
    before, after = data.confounding_before, data.confounding_after
    lines = [
        Line(name, "", [[before[name]], *([[after[name]] if name in after else []] if after else [])])
        for name in before
    ]
    return Chart(["training images", "counterfactuals alone"] if after else ["training images"], lines)


def render_report(data: ReportData) -> str:
    """The page as text."""
    if any(len(example.captions) != len(example.counterfactuals) for rows in data.grids.values() for example in rows):
        raise UsageError("report: expected one caption per counterfactual image, got a different number; give one each")
    summaries = summarise(data.rows)
    after = of_ours(summaries, data.advice)
    style, _ = _own("report.css")
    script, script_digest = _own("report.js")
    page = template("report.html").render(
        data=data,
        summaries=summaries,
        style=style,
        script=script,
        script_digest=script_digest,
        headline=headline(summaries, data.advice),
        verdict=verdict(summaries) if data.rows else "",
        gallery=gallery(data.gallery) if data.gallery else None,
        beside=beside(data.compared),
        compared_chart=_compared_chart(data.compared),
        still=all(item.worst[1] == item.worst[2] for item in summaries if len(item.seeds) > 1)
        and any(len(item.seeds) > 1 for item in summaries),
        method_chart=_method_chart(summaries),
        group_chart=group_chart(data.rows, ["erm", *([after.method] if after else [])]),
        confounding_chart=_confounding_chart(data),
        configuration=json.dumps(data.configuration, indent=1) if data.configuration else "",
        gaps=attribute_gaps(data.rows, data.spurious) if len(data.spurious) > 1 else {},
        matrices=_matrices(data, summaries),
        empty=empty_groups(data.rows),
        method_notes=METHOD_NOTES,
        status_words=STATUS_WORDS,
        most_tests=MOST_TESTS,
        selection=sorted({str(row["selection"]) for row in data.rows}),
    )
    return str(page)


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the report; the file appears as a whole or not at all. Returns its path."""
    path = Path(path)
    page = render_report(data)
    try:
        replace_file(path, page.encode())
    except OSError as error:
        raise CfaugError(
            f"{path}: cannot write the report ({error.strerror}); free some space or choose a different --out"
        ) from error
    return path
