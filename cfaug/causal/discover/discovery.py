"""Causal discovery: edges that a table suggests, with how sure it is of each. A discovered edge is a hypothesis.

Every edge is asked for again in resamples, each half of the rows without repetition (stability selection: Meinshausen &
Bühlmann, 2010). The bootstrap proper repeats rows, which a test takes for evidence: under independence its
statistic doubles. Reported are

    presence     share of the resamples that have an edge between the two, in any direction
    orientation  share of those in which it points as it does here

Neither is the probability that the edge is true; ``benchmarks/discovery.py`` measures how often it is. No method here
sees what the table lacks: a hidden cause of two columns makes an edge in ``pc``, ``ges`` and ``dagma``, and images
chosen by the values of two columns make one in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal.audit.independence import FEWEST_ROWS, IndependenceTest
from cfaug.causal.discover import structure_learning as learning
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.orient_edges import WORDS, Edge, extension
from cfaug.causal.graph import CausalGraph
from cfaug.data.schema import IMAGE, Schema
from cfaug.errors import DataError, UsageError, near

METHODS = ("pc", "fci", "ges", "dagma")
CONSTRAINTS = ("pc", "fci")
_SO = {"->": "so directed", "o->": "so directed", "--": "undirected in"}


@dataclass(frozen=True)
class Discovery:
    """What a discovery found in ``n`` rows over ``names``; ``also`` are edges that only resamples have."""

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

        Edges without a direction get that of one consistent extension, where there is one without a path from a spurious attribute
        to the target; see ``choices`` for which. UsageError when ``image_parents`` names no attribute, and for a name that cannot be
        written in a graph.
        """
        _check_names(self.names)
        for name in image_parents:
            if name not in self.names:
                raise UsageError(f"{name!r} -> image: no such attribute; {near(name, self.names)}")
        required = {(e.a, e.b) for e in self.edges if e.required}
        directed, _ = self._extension()
        pieces = [f"{a} {'->' if (a, b) in required else '->?'} {b}" for a, b in directed]
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
        lines = [
            f"{self.method}: {self.n} rows, {len(self.names)} attributes, "
            + (f"alpha {self.alpha:g}, " if self.method in CONSTRAINTS else "")
            + (f"{self.bootstraps} resamples of half the rows" if self.bootstraps else "no resamples")
        ]
        width = max((len(str(e)) for e in (*self.edges, *self.also)), default=0)
        for e in self.edges:
            shares = "" if e.presence is None else f"  present {e.presence:4.0%}"
            shares += "" if e.orientation is None else f"  {_SO.get(e.kind, 'so marked')} {e.orientation:4.0%}"
            word = "required" if e.required else WORDS.get(e.kind, "")
            lines.append(f"  {e!s:{width}}{shares}{f'  ({word})' if word else ''}")
        if not self.edges:
            lines.append("  no edges")
        for e in self.also:
            lines.append(f"  {e!s:{width}}  present {e.presence or 0:4.0%}  (in resamples only)")
        return [*lines, *self.notes, *self.choices]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "method": self.method,
            "names": list(self.names),
            "n": self.n,
            "alpha": self.alpha,
            "bootstraps": self.bootstraps,
            "seed": self.seed,
            "background": self.background.to_json(),
            "edges": [asdict(e) for e in self.edges],
            "also": [asdict(e) for e in self.also],
            "notes": list(self.notes),
            "choices": list(self.choices),
            "target": self.target,
            "spurious": list(self.spurious),
            "text": self.text,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Discovery:
        """The inverse of ``to_json``; UsageError when ``data`` is something else."""
        try:
            edges, also = (tuple(Edge(**row) for row in data[key]) for key in ("edges", "also"))
            plain = {key: data[key] for key in ("method", "n", "alpha", "bootstraps", "seed")}
            known = Background.read(**data["background"])
            return cls(
                names=tuple(data["names"]),
                edges=edges,
                also=also,
                background=known,
                notes=tuple(data["notes"]),
                target=data.get("target"),
                spurious=tuple(data.get("spurious", ())),
                **plain,
            )
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"this is not a discovery written by cfaug ({error}); run `cfaug discover` again"
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
        table: one row an image; values may be missing (pc and fci use every row that has the values of a question, ges and
            dagma the complete rows).
        schema: which columns, and of what kind.
        method: pc, fci, ges or dagma: see :mod:`cfaug.causal.discover.structure_learning`.
        alpha: level of the tests of pc and fci, in (0, 1).
        background: what is known beforehand.
        bootstraps: resamples for ``presence`` and ``orientation``; 0: none.
        seed: of the resamples.
        progress: a tqdm bar over the resamples.

    Raises:
        UsageError: an unknown method or name, a name that no graph can hold, contradicting knowledge, a missing package.
        DataError: a constant column, a value outside the schema, or too few rows.
    """
    background = background or Background()
    sampled = _check(table, schema, method, alpha, background, bootstraps, seed)
    canonical = schema.canonical(table)
    complete = canonical.dropna()
    if method in ("ges", "dagma"):
        canonical = complete
    found = _search(canonical, schema, method, alpha, background)
    n = len(canonical)
    counts: dict[frozenset[str], Counter[learning.Proposal]] = {}
    if bootstraps:
        from tqdm.auto import trange

        for i in trange(bootstraps, desc="resamples", disable=not progress):
            rows = np.random.default_rng([seed, i]).permutation(n)[: n // 2]
            for edge in _search(canonical.iloc[np.sort(rows)], schema, method, alpha, background):
                counts.setdefault(frozenset((edge[0], edge[2])), Counter())[edge] += 1

    def counted(edge: learning.Proposal) -> Edge:
        a, kind, b = edge
        seen = counts.get(frozenset((a, b)), Counter())
        presence = seen.total() / bootstraps if bootstraps else None
        return Edge(a, kind, b, presence, seen[edge] / seen.total() if seen else None, (a, b) in background.required)

    edges = tuple(counted(edge) for edge in found)
    pairs = {frozenset((e.a, e.b)) for e in edges}
    also = [counted(max(sorted(c), key=c.__getitem__)) for pair, c in counts.items() if pair not in pairs]
    also.sort(key=lambda e: (-(e.presence or 0.0), e.a, e.b))
    notes = []
    if len(complete) < len(table):
        used = (
            "only the others are used"
            if len(canonical) == len(complete)
            else "each test uses the rows that have its own"
        )
        notes.append(f"{len(table) - len(complete)} of {len(table)} rows lack a value; {used}")
    if method == "dagma" and edges:
        notes.append("dagma: linear, on standardised columns; believe who is joined before you believe a direction")
    if method in CONSTRAINTS and sampled:
        notes.append(f"{method}: {sampled}")
    return Discovery(
        method,
        schema.names,
        edges,
        tuple(also),
        n,
        alpha,
        bootstraps,
        seed,
        background,
        tuple(notes),
        schema.target,
        schema.spurious,
    )


def _search(
    table: pd.DataFrame, schema: Schema, method: str, alpha: float, background: Background
) -> list[learning.Proposal]:
    found = {
        "pc": lambda: learning.pc(table, schema, alpha, background),
        "fci": lambda: learning.fci(table, schema, alpha, background),
        "ges": lambda: learning.ges(table, schema, background),
        "dagma": lambda: learning.dagma(table, schema, background),
    }[method]()
    # whatever a method made of it: what the user requires is there, as required
    required = set(background.required)
    kept = [edge for edge in found if not {(edge[0], edge[2]), (edge[2], edge[0])} & required]
    return sorted([*kept, *((a, "->", b) for a, b in required)])


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        try:
            whole = CausalGraph(name).nodes == (name,)
        except UsageError:
            whole = False
        if not whole:
            raise UsageError(
                f"column {name!r} cannot be written in a graph (; -> <- = , < > and line breaks are its signs); rename the column"
            )


def _whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and int(number) >= 0


def _check(
    table: pd.DataFrame,
    schema: Schema,
    method: str,
    alpha: float,
    background: Background,
    bootstraps: int,
    seed: int,
) -> str:
    """Errors before the search begins; returns what the tests say of the rows they sample."""
    for given, expected, hint in (
        (schema, Schema, "Schema([Attribute(...), ...]) names the columns"),
        (table, pd.DataFrame, "one row an image, one column an attribute"),
        (background, Background, 'Background.read takes texts such as "a -> b"'),
    ):
        if not isinstance(given, expected):
            what = repr(given)[:60] if isinstance(given, str) else f"a {type(given).__name__}"
            raise UsageError(f"discover expects a {expected.__name__}, got {what}; {hint}")
    if method not in METHODS:
        raise UsageError(f"discover.method must be one of {', '.join(METHODS)}, but {method!r} came; choose one")
    if not isinstance(alpha, int | float | np.floating) or not 0 < alpha < 1:
        raise UsageError(f"discover.alpha must be between 0 and 1, but {alpha!r} came; 0.05 or 0.01 are usual")
    if not _whole(bootstraps):
        raise UsageError(
            f"discover.bootstraps must be a whole number, 0 or more, but {bootstraps!r} came; 20 give shares in steps of 5 %"
        )
    if not _whole(seed):
        raise UsageError(f"the seed of discover must be a whole number, 0 or more, but {seed!r} came; 0 will do")
    if len(schema) < 2:
        raise UsageError(
            f"discovery is between attributes: expected two or more, got {', '.join(schema.names) or 'none'}"
        )
    _check_names(schema.names)
    background.check(schema.names)
    learning.need("dagma" if method == "dagma" else "causallearn")
    columns = schema.canonical(table)
    for name in schema.names:
        if (values := columns[name].dropna()).nunique() < 2:
            came = f"always {values.iloc[0]}" if len(values) else "empty"
            raise DataError(
                f"column {name!r} is {came}: nothing can be found out about it; leave it out of the attributes"
            )
    tests = IndependenceTest(table, schema)
    fewest = FEWEST_ROWS * (1 + sum(max(1, tests.column(name).features.shape[1]) for name in schema.names))
    complete = len(columns.dropna())
    if complete < fewest * (2 if bootstraps else 1):
        half = " and as many again for resamples of half" if bootstraps else ""
        raise DataError(
            f"discovery over {len(schema)} attributes: expected {fewest} rows with all values{half}, got {complete}; "
            "give more rows, or fewer attributes"
        )
    return tests.sampled
