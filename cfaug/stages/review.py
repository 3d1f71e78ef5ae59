"""``cfaug review``: a page on which a person says of pairs whether they are right, and what becomes of the answers.

    OUT/review.html  ->  decisions.json (sample digests inside)  ->  cfaug review OUT --decisions FILE     agreement with the gate
                                                                 ->  gate.decisions: FILE                  what is wrong is drawn again

The page is one file, works offline, and keeps its progress in the browser by the samples' digests: the same bytes again are the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.config import Recipe
from cfaug.data.files import replace_file
from cfaug.data.images import Pixels, pixel_digest
from cfaug.decode import CounterfactualModel
from cfaug.errors import UsageError, listed
from cfaug.judge.charts import thumbnail_uri
from cfaug.judge.report import template
from cfaug.offline import ShardReader
from cfaug.offline.reviewed import read_decisions
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.doubt import least_margins, ranks
from cfaug.stages.gate import make_gate
from cfaug.stages.masks import with_masks
from cfaug.stages.run_directory import shards_of
from cfaug.stages.verification import open_finished

PAGE = "review.html"
_LARGEST = 320  # pixels of a picture's longer side


@dataclass(frozen=True)
class Agreement:
    """What a person said of samples that the gate has kept: how many are right, wrong and of another class."""

    right: int
    wrong: int
    relabelled: int
    by_group: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        total = self.right + self.wrong + self.relabelled
        lines = [
            f"{total} pairs were reviewed, all of which the gate had kept: {self.right} right ({100 * self.right / total:.1f} %), {self.wrong} wrong, "
            f"{self.relabelled} of another class"
        ]
        lines += [f"  {group}: {right} of {n} right" for group, (right, n) in self.by_group.items()]
        return "\n".join([*lines, "To leave out what is wrong: generate again with --gate.decisions=FILE"])


def review_page(directory: str | Path, pairs: int = 200, seed: int = 0, progress: bool = False) -> Path:
    """Write ``review.html`` with ``pairs`` samples of a run at most, the most doubtful first.

    Doubtful is what a criterion of the run's gate let pass with the least margin, as a rank among the samples that were drawn; without a
    gate, what changed least or most.

    Raises:
        UsageError: not a run's directory, or shards without counterfactuals.
    """
    run, recipe, inputs = open_finished(directory, progress)
    inputs = with_masks(recipe, inputs, run / "masks")
    shards = ShardReader(shards_of(str(run)))
    real = np.flatnonzero(~shards.nulls)
    if not len(real):
        raise UsageError(f"expected counterfactuals to review in {run}, got none; generate some")
    rows = np.sort(np.random.default_rng([seed, 29]).permutation(real)[:pairs]).tolist()
    records, images = [shards.record(i) for i in rows], [shards.image(i) for i in rows]
    doubt, why = _doubt(run, recipe, inputs, records, images)
    place = {inputs.train.key(i): i for i in range(len(inputs.train))}
    listed_pairs = [
        {
            "key": records[k]["key"], "digest": pixel_digest(images[k]), "before": thumbnail_uri(inputs.train.image(place[records[k]["source_key"]]), _LARGEST), "after": thumbnail_uri(images[k], _LARGEST),
            "factual": f"{records[k]['source_key']}: {_said(records[k]['factual'])}",
            "done": f"do({_said(records[k]['do'])}), {inputs.target}={records[k]['target']}", "why": why[k],
        }
        for k in np.argsort(doubt, kind="stable").tolist()
    ]  # fmt: skip
    data = {"name": recipe.name, "data": inputs.digest, "target": inputs.target, "classes": list(inputs.schema[inputs.target].categories), "pairs": listed_pairs}  # fmt: skip
    replace_file(run / PAGE, str(template("review.html").render(data=data)).encode())
    return run / PAGE


def agreement(directory: str | Path, decisions: str | Path) -> Agreement:
    """What the ``decisions`` say of a run's samples.

    Raises:
        UsageError: a file that is no decisions, or decisions about other images than the run's.
    """
    run, _, inputs = open_finished(directory)
    found = read_decisions(decisions, inputs.digest)
    shards = ShardReader(shards_of(str(run)))
    place = {entry.key: i for i, entry in enumerate(shards.index)}
    others = [
        key
        for key, (digest, _, _) in found.items()
        if key not in place or pixel_digest(shards.image(place[key])) != digest
    ]
    if others:
        raise UsageError(
            f"{decisions}: expected decisions about samples of {run}, got {len(others)} about other images ({listed(others, 2)}); review this run"
        )
    said = {key: decision for key, (_, decision, _) in found.items()}
    if not said:
        raise UsageError(f"{decisions}: expected decisions, got none; decide some pairs on {PAGE} and save them")
    groups: dict[str, list[bool]] = {}
    for key, decision in said.items():
        record = shards.record(place[key])
        for name, value in record["do"].items():
            groups.setdefault(f"{inputs.target}={record['target']},{name}={value}", []).append(decision == "y")
    counts = {name: (sum(some), len(some)) for name, some in sorted(groups.items())}
    right, wrong, other = (sum(one == what for one in said.values()) for what in ("y", "n", "relabel"))
    return Agreement(right, wrong, other, counts)


def _doubt(
    run: Path, recipe: Recipe, inputs: Inputs, records: Sequence[Mapping[str, Any]], images: Sequence[Pixels]
) -> tuple[Any, list[str]]:
    """(N,) a rank in [0, 1], the most doubtful lowest, and which criterion says so."""
    model = CounterfactualModel.load(run / "model", recipe.decoder.device)
    gate = make_gate(recipe, inputs, model, run)
    if gate is None or not gate.criteria:
        change = np.array([record["quality"]["change_l1"] for record in records])
        middle = np.abs(ranks(change) - 0.5)
        return 0.5 - middle, [""] * len(records)
    return least_margins(gate, model, inputs, records, images)


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
