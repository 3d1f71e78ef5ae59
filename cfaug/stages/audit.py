"""``cfaug audit``: what a classifier uses, asked with the factual images of a run and all that were made from them.

Answers go through :mod:`cfaug.judge.effects`; rows to ``effects.jsonl``, one per (model, attribute, group), and the worst pairs to
``audit/MODEL.json``. The test split's metrics by group (:mod:`cfaug.judge.fairness`) go to ``metrics.jsonl``. Nothing is trained, fitted or generated.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from cfaug.data import AttributeDataset
from cfaug.data.files import expand, replace_file
from cfaug.data.loading import ImageStream
from cfaug.errors import UsageError
from cfaug.judge.effects import ALL, EFFECTS, Answers, difference, effects, flips_to, read_effects, told, worst_pairs
from cfaug.judge.fairness import choose_threshold, gaps, group_metrics
from cfaug.offline import ShardReader
from cfaug.stages.audited_models import Asked, FrozenNet, Told, open_audited
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.kept_classifiers import PLACE, kept_classifiers
from cfaug.stages.run_directory import shards_of
from cfaug.stages.verification import open_finished

PAIRS, METRICS = "audit", "metrics.jsonl"


@dataclass(frozen=True)
class Audit:
    """Rows of ``effects.jsonl`` by model, and what there is to say.

    ``differences``: attribute -> how much larger the change of the second model is than that of the first, with its interval.
    ``metrics``: model -> rows of ``metrics.jsonl``, of the test split by group; not of more than two models, or of a table.
    """

    rows: Mapping[str, list[dict[str, Any]]]
    differences: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    metrics: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Each model's effects in words; of many models one line each."""
        if len(self.rows) > 2:
            return _many(self.rows)
        parts = ["\n".join([name, *(f"  {line}" for line in told(rows))]) for name, rows in self.rows.items()]
        if self.differences:
            first, second = self.rows
            parts.append(
                "\n".join(
                    [f"{second} against {first}, in points of the label's probability"]
                    + [
                        f"  {name}: {100 * d:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
                        for name, (d, low, high) in self.differences.items()
                    ]
                )
            )
        return "\n\n".join(parts + [_metrics_told(name, rows) for name, rows in self.metrics.items()])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "effects": [row for rows in self.rows.values() for row in rows], "differences": dict(self.differences),
            "metrics": [row for rows in self.metrics.values() for row in rows],
        }  # fmt: skip


def _many(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    lines = [
        "model, and for each attribute: change of the label's probability in points (interval), predictions that flip (floor)"
    ]
    for name, own in rows.items():
        cells = [
            f"{row['attribute']} {100 * row['change'][0]:.1f} ({100 * row['change'][1]:.1f} to {100 * row['change'][2]:.1f}), "
            f"{100 * row['flip_rate']:.1f} % ({100 * row['flip_floor']:.1f} %)"
            for row in own
            if row["group"] == ALL
        ]
        lines.append(f"{name:24} {'   '.join(cells)}")
    return "\n".join(lines)


def audit_run(
    directory: str | Path,
    models: Sequence[str] = (),
    told: Told | None = None,
    images: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    """Ask ``models``, files (none: every classifier that the run has kept), about ``images`` sources of a run at most.

    Raises:
        UsageError: not a run's directory, no model, or one that cannot be asked (:func:`cfaug.stages.audited_models.open_audited`).
        DataError: shards without interventions on a spurious attribute, or without a floor for their effect.
    """
    run, recipe, inputs = open_finished(directory, progress)
    files = {path.stem if path.parent.name == PLACE else path.name: path for path in map(expand, models)} or {
        path.stem: path for path in kept_classifiers(run)
    }
    if len(files) < len(models):
        raise UsageError("expected models with different file names, got one twice; rename one")
    if not files:
        raise UsageError(
            f"expected a model to audit, got none, and {run} has kept no classifiers; give --model FILE, or train with train.keep: true"
        )
    frozen = FrozenNet(recipe, inputs)
    opened = {name: open_audited(path, told or Told(), recipe, inputs, frozen) for name, path in files.items()}
    asked = _Questions(inputs, ShardReader(shards_of(str(run))), images, seed)
    answers, rows = {}, {}
    for name, ask in tqdm(opened.items(), desc="audit", unit="model", disable=not progress or len(opened) < 2):
        answers[name] = asked.of(ask)
        rows[name] = [{"model": name, **row} for row in effects(answers[name], asked.attributes, seed)]
        for row in rows[name]:
            if row["group"] == ALL:
                row["flips_to"] = flips_to(answers[name], row["attribute"])
        _write(run, name, rows[name], asked.worst(answers[name]))
    measured = (
        {}
        if len(files) > 2
        else {
            name: _test_metrics(name, ask, inputs, seed) for name, ask in opened.items() if files[name].suffix != ".csv"
        }
    )
    if measured:
        _replace(run / METRICS, measured, [row for some in measured.values() for row in some])
    if len(files) != 2:
        return Audit(rows, {}, measured)
    first, second = answers.values()
    return Audit(rows, {name: difference(first, second, name, seed) for name in asked.attributes}, measured)


def _test_metrics(name: str, ask: Asked, inputs: Inputs, seed: int) -> list[dict[str, Any]]:
    """One row per level of each spurious attribute, of the test split; two classes are cut where validation is best."""

    def said(dataset: AttributeDataset) -> tuple[Any, Any]:
        keys = [dataset.key(i) for i in range(len(dataset))]
        return inputs.schema.index(inputs.target, dataset.table[inputs.target]), ask(
            keys, ImageStream(dataset, range(len(dataset)))
        )

    targets, probabilities = said(inputs.test)
    cut = 0.5
    if probabilities.shape[1] == 2:
        truth, scores = said(inputs.val)
        cut = choose_threshold(truth, scores[:, 1])
    rows = []
    for attribute in inputs.grouper.spurious:
        levels = inputs.grouper.levels(inputs.test.table, attribute).map(lambda level, a=attribute: f"{a}={level}")
        found = group_metrics(targets, probabilities, levels.to_numpy(), cut, seed)
        for group, row in found.items():
            rows.append({"model": name, "attribute": attribute, "group": group, "threshold": round(cut, 6), **row})
        rows.append({"model": name, "attribute": attribute, "group": "gap", **gaps(found)})
    return rows


def _metrics_told(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{name} on the test split (estimate, 95 % interval)"]
    for row in rows:
        if row["group"] == "gap":
            told_ = ", ".join(
                f"{key.replace('_', ' ')} {row[key]:.3f}"
                for key in ("auroc", "balanced_accuracy", "equalised_odds", "ece")
                if row[key] is not None
            )
            lines.append(f"  gaps between groups of {row['attribute']}: {told_}")
            continue
        cells = [
            f"{key} {row[key][0]:.3f} ({row[key][1]:.3f} to {row[key][2]:.3f})"
            for key in ("auroc", "balanced_accuracy", "tpr", "fpr", "ece")
            if row[key] is not None
        ]
        lines.append(f"  {row['group']} (n {row['n']}): {', '.join(cells).replace('_', ' ')}")
    return "\n".join(lines)


class _Questions:
    """The images that every model is asked about: some sources, drawn by the seed, and all images that were made from them."""

    def __init__(self, inputs: Inputs, shards: ShardReader, images: int, seed: int) -> None:
        self.inputs, self.shards = inputs, shards
        place = {inputs.train.key(i): i for i in range(len(inputs.train))}
        by_source: dict[str, list[int]] = {}
        for row, entry in enumerate(shards.index):
            by_source.setdefault(entry.source_key, []).append(row)
        keys = sorted(by_source)
        chosen = [keys[i] for i in np.sort(np.random.default_rng([seed, 19]).permutation(len(keys))[:images]).tolist()]
        self.sources = [place[key] for key in chosen]
        self.rows = [row for key in chosen for row in by_source[key]]
        self.source = np.repeat(np.arange(len(chosen)), [len(by_source[key]) for key in chosen])
        records = [shards.record(row) for row in self.rows]
        self.do = [record["do"] for record in records]
        self.sample_keys, self.keys = [str(record["key"]) for record in records], chosen
        table = inputs.schema.canonical(inputs.train.table.iloc[self.sources])
        self.table = table.astype(object).where(table.notna(), None)
        named = {name for act in self.do for name in act}
        self.attributes = [name for name in inputs.schema.spurious if name in named]
        if not self.attributes:
            raise UsageError(
                f"expected shards with interventions on {', '.join(inputs.schema.spurious)}, got none; plan and generate some"
            )

    def of(self, ask: Asked) -> Answers:
        """What a classifier says."""
        schema, target = self.inputs.schema, self.inputs.target
        labels = np.asarray(schema.index(target, self.table[target]), dtype=np.int64)
        factual = ask(self.keys, ImageStream(self.inputs.train, self.sources))
        made = ask(self.sample_keys, ImageStream(self.shards, self.rows))
        return Answers(target, schema[target].categories, labels, factual, made, self.source, self.do, self.table)

    def worst(self, answers: Answers) -> list[dict[str, Any]]:
        """The pairs that move the answers most, of every attribute."""
        found = []
        for name in self.attributes:
            for i in worst_pairs(answers, name):
                source, label = int(self.source[i]), int(answers.labels[self.source[i]])
                found.append({
                    "attribute": name, "source": self.keys[source], "sample": self.sample_keys[i], "do": self.do[i],
                    "label": answers.classes[label],
                    "before": [answers.classes[int(answers.factual[source].argmax())], round(float(answers.factual[source, label]), 4)],
                    "after": [answers.classes[int(answers.made[i].argmax())], round(float(answers.made[i, label]), 4)],
                })  # fmt: skip
        return found


def _replace(path: Path, models: Collection[str], rows: Sequence[Mapping[str, Any]]) -> None:
    kept = [row for row in read_effects(path.parent, path.name) if row["model"] not in models]
    replace_file(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in [*kept, *rows]).encode())


def _write(run: Path, name: str, rows: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> None:
    """Put a model's rows in place of those that it had."""
    _replace(run / EFFECTS, [name], rows)
    (run / PAIRS).mkdir(exist_ok=True)
    replace_file(run / PAIRS / f"{name}.json", json.dumps(list(pairs), indent=1).encode())
