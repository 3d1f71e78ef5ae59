"""Causal discovery on a recipe's training table: the edges that its attributes suggest, and a graph to paste."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfaug.causal import CausalGraph, refuse_if_ancestor
from cfaug.causal.discover.background_knowledge import Background
from cfaug.causal.discover.discovery import Discovery
from cfaug.causal.discover.discovery import discover as discover_in
from cfaug.config import Recipe
from cfaug.errors import UsageError
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.run import Run


@dataclass(frozen=True)
class Findings:
    """What the recipe's method found, the graph to paste, and what a run would say to that graph."""

    discovery: Discovery
    graph: CausalGraph
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> list[str]:
        """Lines for people, the line to paste last."""
        return [*self.discovery.text, *self.warnings, "", f'graph: "{self.graph}"']

    def to_json(self) -> dict[str, Any]:
        """Plain data: the discovery's, with ``graph``, ``warnings`` and ``text``."""
        return self.discovery.to_json() | {
            "graph": str(self.graph),
            "warnings": list(self.warnings),
            "text": self.text,
        }


def discover(run: Run) -> Findings:
    """Ask the training table for edges between the attributes, as ``recipe.discover`` says; writes ``discovery.json``.

    Raises:
        UsageError, DataError: as :func:`cfaug.causal.discover.discovery.discover`.
    """
    with run.timed("discover"):
        found = findings(run.recipe, run.inputs, run.progress)
    run.directory.write_json("discovery.json", found.to_json())
    return found


def findings(recipe: Recipe, inputs: Inputs, progress: bool = False) -> Findings:
    """:func:`discover` without a directory."""
    config, table, schema = recipe.discover, inputs.train.table, inputs.schema
    background = Background.read(config.forbidden, config.required, config.tiers)
    found = discover_in(
        table, schema, config.method, config.alpha, background, config.bootstraps, recipe.seed, progress
    )
    graph = found.graph(inputs.graph.parents("image"))
    try:
        refuse_if_ancestor(graph, inputs.target, schema.spurious)
    except UsageError as error:
        return Findings(found, graph, (f"a run would refuse this graph: {error}",))
    return Findings(found, graph)
