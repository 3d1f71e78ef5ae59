"""Causal discovery: the edges that a table suggests, and how often resamples suggest each. A discovered edge is a hypothesis.

The search is repeated in resamples, each of half the rows without repetition (stability selection: Meinshausen &
Bühlmann, 2010; repeated rows, as in a bootstrap, would double a test's statistic). Every edge then has

    presence     share of the resamples that have an edge between the two, in any direction
    orientation  share of those in which it points as it does here

Neither is the probability that the edge is true; ``benchmarks/discovery.py`` measures how often it is. No method sees what
the table lacks: a hidden cause of two columns makes an edge in ``pc`` and ``ges``, and choosing the images by the values of two
columns makes an edge in all methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal.audit.independence import FEWEST_ROWS, IndependenceTest
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.orient_edges import WORDS, Edge, extension
from cfaug.causal.discover.structure_learning import SEARCHES, Proposal
from cfaug.causal.graph import CausalGraph, refuse_unwritable
from cfaug.data.schema import IMAGE, Schema, refuse_no_schema
from cfaug.data.table import refuse_no_table
from cfaug.errors import DataError, UsageError, near, shown

METHODS = tuple(SEARCHES)
CONSTRAINTS = ("pc", "fci")
_SO = {"->": "so directed", "o->": "so directed", "--": "undirected in"}


@dataclass(frozen=True)
class Discovery:
    """What a discovery found in ``n`` rows over ``names``; ``also`` are the edges that only resamples have."""

    method: str
    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    also: tuple[Edge, ...]
    n: int
    alpha: float
    bootstraps: int
    seed: int
    background: Background = field(default_factory=Background)
    notes: tuple[str, ...] = ()
    target: str | None = None
    spurious: tuple[str, ...] = ()

    def graph(self, image_parents: Sequence[str] = ()) -> CausalGraph:
        """The graph to paste: a question mark at every discovered edge, none at required ones and those into the image.

        Edges without a direction get that of one consistent extension (``orient_edges``); ``choices`` says which. UsageError for
        an image parent that is not an attribute, and for a name that cannot be written in a graph.
        """
        for name in self.names:
            refuse_unwritable(name)
        for name in image_parents:
            if name not in self.names:
                raise UsageError(f"{name!r} -> image: expected an attribute, got {name!r}; {near(name, self.names)}")
        required = {(e.a, e.b) for e in self.edges if e.required}
        pieces = [f"{a} {'->' if (a, b) in required else '->?'} {b}" for a, b in self._extension()[0]]
        pieces += [f"{e.a} <->? {e.b}" for e in self.edges if e.kind == "<->"]
        return CausalGraph("; ".join([*self.names, *pieces, *(f"{name} -> {IMAGE}" for name in image_parents)]))

    @property
    def choices(self) -> tuple[str, ...]:
        """One sentence for each direction in ``graph`` that the method did not give, and one when the target decided them."""
        return self._extension()[1]

    def _extension(self) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
        return extension(self.names, self.edges, self.background, self.target, self.spurious)

    @property
    def text(self) -> list[str]:
        """Lines for people: what was asked, the edges with their shares, which directions were chosen."""
        level = f"alpha {self.alpha:g}, " if self.method in CONSTRAINTS else ""
        resamples = f"{self.bootstraps} resamples of half the rows" if self.bootstraps else "no resamples"
        lines = [f"{self.method}: {self.n} rows, {len(self.names)} attributes, {level}{resamples}"]
        width = max((len(str(e)) for e in (*self.edges, *self.also)), default=0)
        for e in self.edges:
            shares = "" if e.presence is None else f"  present {e.presence:4.0%}"
            shares += "" if e.orientation is None else f"  {_SO.get(e.kind, 'so marked')} {e.orientation:4.0%}"
            word = "required" if e.required else WORDS.get(e.kind, "")
            lines.append(f"  {e!s:{width}}{shares}{f'  ({word})' if word else ''}")
        if not self.edges:
            lines.append("  no edges")
        lines += [f"  {e!s:{width}}  present {e.presence or 0:4.0%}  (in resamples only)" for e in self.also]
        return [*lines, *self.notes, *self.choices]

    def to_json(self) -> dict[str, Any]:
        """Plain data: every field, ``choices`` and ``text``."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return plain | {
            "background": self.background.to_json(),
            "choices": list(self.choices),
            "text": self.text,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Discovery:
        """The inverse of ``to_json``; UsageError when ``data`` is something else."""
        try:
            plain = {key: data[key] for key in ("method", "n", "alpha", "bootstraps", "seed", "target")}
            lists: dict[str, Any] = {key: tuple(data[key]) for key in ("names", "notes", "spurious")}
            edges: dict[str, Any] = {key: tuple(Edge(**row) for row in data[key]) for key in ("edges", "also")}
            return cls(**plain, **lists, **edges, background=Background.read(**data["background"]))
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"expected a discovery written by cfaug, got something else ({error}); run `cfaug discover` again"
            ) from error


def discover(
    table: pd.DataFrame,
    schema: Schema,
    method: str = "pc",
    alpha: float = 0.05,
    background: Background | None = None,
    bootstraps: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Discovery:
    """The edges that ``method`` finds between the attributes of ``schema``.

    Args:
        table: one row per image; values may be missing (pc and fci use every row that has the values of a question, ges the
            complete rows).
        schema: which columns, and of what kind.
        method: pc, fci or ges: see :mod:`cfaug.causal.discover.structure_learning`.
        alpha: level of the tests of pc and fci, in (0, 1).
        background: what is known beforehand.
        bootstraps: number of resamples for ``presence`` and ``orientation``; 0 for none.
        seed: of the resamples.
        progress: a tqdm bar over the resamples.

    Raises:
        UsageError: an unknown method or name, a name that no graph can hold, contradicting knowledge, a missing package.
        DataError: a constant column, a value outside the schema, or too few rows.
    """
    known = background or Background()
    _check_options(schema, method, alpha, known, bootstraps, seed)
    refuse_no_table(table)
    canonical = schema.canonical(table)
    complete = canonical.dropna()
    sampled = _check_rows(canonical, len(complete), schema, bootstraps > 0)
    used = complete if method == "ges" else canonical

    def search(rows: pd.DataFrame) -> list[Proposal]:
        # a required edge is in the result, and required, whatever the method has found
        required = set(known.required)
        found = [e for e in SEARCHES[method](rows, schema, alpha, known) if not {(e[0], e[2]), (e[2], e[0])} & required]
        return sorted([*found, *((a, "->", b) for a, b in required)])

    proposals, n = search(used), len(used)
    counts: dict[frozenset[str], Counter[Proposal]] = {}
    if bootstraps:
        from tqdm.auto import trange

        for i in trange(bootstraps, desc="resamples", disable=not progress):
            half = np.sort(np.random.default_rng([seed, i]).permutation(n)[: n // 2])
            for edge in search(used.iloc[half]):
                counts.setdefault(frozenset((edge[0], edge[2])), Counter())[edge] += 1

    def counted(edge: Proposal) -> Edge:
        a, kind, b = edge
        seen = counts.get(frozenset((a, b)), Counter())
        presence = seen.total() / bootstraps if bootstraps else None
        return Edge(a, kind, b, presence, seen[edge] / seen.total() if seen else None, (a, b) in known.required)

    edges = tuple(counted(edge) for edge in proposals)
    pairs = {frozenset((e.a, e.b)) for e in edges}
    also = [counted(max(sorted(c), key=c.__getitem__)) for pair, c in counts.items() if pair not in pairs]
    also.sort(key=lambda e: (-(e.presence or 0.0), e.a, e.b))
    notes = []
    if lacking := len(table) - len(complete):
        way = "only complete rows are used" if method == "ges" else "each test uses the rows that have its values"
        notes.append(f"{lacking} of {len(table)} rows lack a value; {way}")
    if method in CONSTRAINTS and sampled:
        notes.append(f"{method}: {sampled}")
    return Discovery(
        method, schema.names, edges, tuple(also), n, alpha, bootstraps, seed, known,
        tuple(notes), schema.target, schema.spurious,
    )  # fmt: skip


def _check_options(
    schema: Schema, method: str, alpha: float, background: Background, bootstraps: int, seed: int
) -> None:
    refuse_no_schema(schema)
    if not isinstance(background, Background):
        raise UsageError(f'discover: expected a Background, got {shown(background)}; Background.read takes "a -> b"')
    if method not in METHODS:
        raise UsageError(f"discover.method: expected one of {', '.join(METHODS)}, got {method!r}; choose one")
    if not isinstance(alpha, int | float | np.floating) or not 0 < alpha < 1:
        raise UsageError(f"discover.alpha: expected a number between 0 and 1, got {alpha!r}; 0.05 or 0.01 are usual")
    for name, number, hint in (
        ("discover.bootstraps", bootstraps, "20 give shares in steps of 5 %"),
        ("the seed of discover", seed, "0 will do"),
    ):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise UsageError(f"{name}: expected a whole number from 0 up, got {number!r}; {hint}")
    if len(schema) < 2:
        raise UsageError(
            f"discover: expected two or more attributes, got {', '.join(schema.names) or 'none'}; add some"
        )
    for name in schema.names:
        refuse_unwritable(name)
    background.check(schema.names)
    if find_spec("causallearn") is None:
        raise UsageError(
            'discovery needs the package causal-learn, which is not installed; pip install "cfaug[discover]"'
        )


def _check_rows(canonical: pd.DataFrame, complete: int, schema: Schema, halved: bool) -> str:
    """DataError for a table that cannot be searched; returns the words on which rows the tests sample."""
    for name in schema.names:
        if (values := canonical[name].dropna()).nunique() < 2:
            got = f"only {values.iloc[0]}" if len(values) else "none"
            raise DataError(
                f"column {name!r}: expected at least two different values, got {got}; leave it out of the attributes"
            )
    tests = IndependenceTest(canonical, schema)
    fewest = FEWEST_ROWS * (1 + sum(max(1, tests.column(name).features.shape[1]) for name in schema.names))
    if complete < fewest * (1 + halved):
        half = " and as many again for resamples of half" if halved else ""
        raise DataError(
            f"discovery over {len(schema)} attributes: expected {fewest} rows with all values{half}, got {complete}; "
            "give more rows, or fewer attributes"
        )
    return tests.sampled
