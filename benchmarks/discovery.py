"""Discovery against known truth: random mixed DAGs, every method, and whether its confidences mean what they say.

    python benchmarks/discovery.py             # 10 graphs of strong and 10 of weak effects, 5 000 rows, 20 resamples
    python benchmarks/discovery.py --table     # the Markdown tables of the rows that are there

A graph: six nodes in a random order, each pair joined with probability 0.4 (expected degree 2). A node is continuous or
categorical with 2 to 4 values, half and half. A parent acts through a line, sine, tangent, absolute value or square (a
categorical one through a random effect of each level); noise is normal, Laplace, uniform or exponential, and Gumbel
for a category. An effect is worth 0.6 to 1.4 standard deviations of the noise ("strong") or 0.05 to 0.4 ("weak").
Continuous columns are standardised as they are made, so no unit tells a direction.

Structural Hamming distance: pairs of nodes on which the answer and the true CPDAG differ (no edge, "--", "->" or "<-"),
0 to 15. A DAG is first completed to its CPDAG; of a PAG "o->" counts as "->", "o-o" as "--", and "<->" as always wrong.
Skeleton precision and recall: edges without their directions. Orientation precision: of the answer's directed
edges between nodes that are truly joined, how many point as the true DAG does. All are sums over the graphs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.discovery import Discovery, discover
from cfaug.causal.discover.structure_learning import Proposal, edges_of, silence
from cfaug.data import Attribute, Schema

Edges = dict[frozenset[str], Proposal]
CURVES: tuple[Callable[[Any], Any], ...] = (
    lambda v: v,
    lambda v: np.sin(2 * v),
    lambda v: np.tanh(2 * v),
    np.abs,
    lambda v: v**2 / 1.5,
)


SIZES = {"strong": (0.6, 1.4), "weak": (0.05, 0.4)}


def world(
    seed: int, effects_are: str = "strong", nodes: int = 6, rows: int = 5000
) -> tuple[pd.DataFrame, Schema, list[tuple[str, str]]]:
    """A table, its schema and the true edges."""
    rng = np.random.default_rng([seed, 2024])
    names = [f"v{i}" for i in range(nodes)]
    order = [names[i] for i in rng.permutation(nodes)]
    edges = [(a, b) for a, b in itertools.combinations(order, 2) if rng.random() < 0.4]
    columns: dict[str, Any] = {}
    attributes: dict[str, Attribute] = {}

    def push(cause: str) -> Any:
        size = rng.choice([-1, 1]) * rng.uniform(*SIZES[effects_are])
        if attributes[cause].kind == "continuous":
            shape = CURVES[rng.choice(len(CURVES), p=(0.4, 0.15, 0.15, 0.15, 0.15))](columns[cause])
            return size * (shape - shape.mean()) / shape.std()
        effects = rng.standard_normal(columns[cause].max() + 1)
        each = effects[columns[cause]]
        return size * (each - each.mean()) / max(each.std(), 1e-9)

    for name in order:
        causes = [a for a, b in edges if b == name]
        if rng.random() < 0.5:
            noise = rng.choice(["normal", "laplace", "uniform", "exponential"])
            draw = rng.uniform(-1, 1, rows) if noise == "uniform" else getattr(rng, str(noise))(size=rows)
            value = sum((push(c) for c in causes), np.zeros(rows)) + (draw - draw.mean()) / draw.std()
            columns[name] = (value - value.mean()) / value.std()
            attributes[name] = Attribute(name, "continuous")
        else:
            levels = int(rng.integers(2, 5))
            scores = rng.gumbel(size=(rows, levels)) + rng.uniform(-0.5, 0.5, levels)
            for c in causes:
                centre = push(c)
                scores += np.outer(1.5 * centre, rng.permutation(np.linspace(-1, 1, levels)))
            columns[name] = scores.argmax(1)
            attributes[name] = Attribute(name)
    return pd.DataFrame({n: columns[n] for n in names}), Schema([attributes[n] for n in names]), edges


def completed(names: tuple[str, ...], edges: list[tuple[str, str]]) -> Edges:
    """The CPDAG of a DAG."""
    from causallearn.graph.Dag import Dag
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.utils.DAG2CPDAG import dag2cpdag

    nodes = [GraphNode(n) for n in names]
    dag = Dag(nodes)
    for a, b in edges:
        dag.add_directed_edge(nodes[names.index(a)], nodes[names.index(b)])
    return as_edges(edges_of(dag2cpdag(dag).graph, names))


def as_edges(found: list[Proposal]) -> Edges:
    """Pairs to edges, with the marks of a PAG read as in the module's words."""
    kinds = {"o->": "->", "o-o": "--", "-o": "--"}
    return {frozenset((a, b)): (a, kinds.get(kind, kind), b) for a, kind, b in found}


def judged(answer: Edges, truth: Edges, edges: list[tuple[str, str]]) -> dict[str, int]:
    """Counts; ``answer`` is compared with the CPDAG ``truth`` and with the DAG ``edges``."""

    def same(pair: frozenset[str]) -> bool:
        one, other = answer.get(pair), truth.get(pair)
        if one is None or other is None:
            return one is other
        return one[1] == other[1] and (one[1] == "--" or one == other)

    true = {frozenset(e) for e in edges}
    directed = [(a, b) for a, kind, b in answer.values() if kind == "->" and frozenset((a, b)) in true]
    return {
        "shd": sum(not same(pair) for pair in set(answer) | set(truth)),
        "found": len(answer),
        "true": len(true),
        "hits": len(set(answer) & true),
        "directed": len(directed),
        "right": sum(edge in edges for edge in directed),
    }


def fisher_z(table: pd.DataFrame, schema: Schema, alpha: float) -> list[Proposal]:
    """What one gets without a test for mixed columns: causal-learn's PC on codes, with Fisher's z."""
    from causallearn.search.ConstraintBased.PC import pc

    codes = np.column_stack([table[n] if schema[n].kind == "continuous" else schema.fit(table).index(n, table[n]) for n in schema.names])  # fmt: skip
    with silence():
        found = pc(codes.astype(float), alpha, "fisherz", show_progress=False, uc_rule=1, uc_priority=3)
    return edges_of(found.G.graph, schema.names)


def answers(seed: int, effects: str, resamples: int) -> Iterator[dict[str, Any]]:
    """One row a method, as it comes."""
    table, schema, edges = world(seed, effects)
    truth = completed(schema.names, edges)

    def row(method: str, found: list[Proposal], seconds: float, discovery: Discovery | None = None) -> dict[str, Any]:
        answer, confidences = as_edges(found), []
        for e in () if discovery is None or not discovery.bootstraps else (*discovery.edges, *discovery.also):
            a, kind, b = as_edges([(e.a, e.kind, e.b)])[frozenset((e.a, e.b))]
            is_true = (a, b) in edges or (b, a) in edges
            points = [e.orientation, (a, b) in edges] if kind == "->" and is_true else None
            confidences.append([e.presence, is_true, points])
        return {
            "effects": effects, "graph": seed, "method": method, "seconds": round(seconds, 3), **judged(answer, truth, edges),
            "confidences": confidences,
        }  # fmt: skip

    yield row("no edges", [], 0.0)
    started = time.process_time()
    found = fisher_z(table, schema, 0.05)
    yield row("pc, Fisher's z on codes", found, time.process_time() - started)
    for method, alpha in (("pc", 0.05), ("pc", 0.01), ("fci", 0.05), ("ges", 0.05)):
        started = time.process_time()
        plain = discover(table, schema, method, alpha, Background())
        seconds = time.process_time() - started
        resampled = (method, alpha) in (("pc", 0.05), ("ges", 0.05))  # one by tests, one by score
        many = discover(table, schema, method, alpha, bootstraps=resamples) if resampled else None
        name = f"{method}, alpha {alpha:g}" if method == "pc" else method
        yield row(name, [(e.a, e.kind, e.b) for e in plain.edges], seconds, many)


def tables(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables: the methods, and the calibration of their confidences."""
    lines = [
        "| method | SHD (mean of graphs) | skeleton precision | recall | orientation precision | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    methods = list(dict.fromkeys(r["method"] for r in rows))
    share = lambda a, b: f"{a / b:.2f} ({a}/{b})" if b else "-"  # noqa: E731
    for method in methods:
        own = [r for r in rows if r["method"] == method]
        total = {key: sum(r[key] for r in own) for key in ("shd", "found", "true", "hits", "directed", "right")}
        lines.append(
            f"| {method} | {total['shd'] / len(own):.1f} | {share(total['hits'], total['found'])} | "
            f"{share(total['hits'], total['true'])} | {share(total['right'], total['directed'])} | "
            f"{np.mean([r['seconds'] for r in own]):.2f} |"
        )
    bins = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 1.01)]
    head = " | ".join(f"{low:g} to {min(high, 1):g}" for low, high in bins)
    lines += ["", f"| share of true ones by confidence | {head} |", "|---|" + "---|" * len(bins)]
    for method in methods:
        seen = [c for r in rows if r["method"] == method for c in r["confidences"]]
        if not seen:
            continue
        for what, pairs in (
            ("presence", [(c[0], c[1]) for c in seen]),
            ("orientation, of true edges", [tuple(c[2]) for c in seen if c[2] and c[2][0] is not None]),
        ):
            cells = []
            for low, high in bins:
                inside = [true for confidence, true in pairs if low <= confidence < high]
                cells.append(share(sum(inside), len(inside)))
            lines.append(f"| {method}: {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "discovery.jsonl"))
    parser.add_argument("--graphs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first graph")
    parser.add_argument("--resamples", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="only print the tables of the rows in --out")
    arguments = parser.parse_args()
    path = Path(arguments.out)
    if not arguments.table:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if arguments.first else "w") as file:  # later graphs join the earlier ones
            for seed in range(arguments.first, arguments.first + arguments.graphs):
                for effects in SIZES:
                    for row in answers(seed, effects, arguments.resamples):
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                        short = {key: row[key] for key in row if key != "confidences"}
                        sys.stderr.write(f"{json.dumps(short)}\n")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for effects in SIZES:
        own = [row for row in rows if row["effects"] == effects]
        sys.stdout.write(
            f"{effects.capitalize()} effects, {len({r['graph'] for r in own})} graphs\n\n{tables(own)}\n\n"
        )


if __name__ == "__main__":
    main()
