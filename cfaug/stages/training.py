"""Train every listed method with every seed, and test it: ``results.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

from cfaug.data import load_images
from cfaug.judge.accuracy import read_results, result_row, write_results
from cfaug.offline import ShardReader
from cfaug.stages.attribute_classifiers import settings_of
from cfaug.stages.generation import shards
from cfaug.stages.recipe_checks import uses_counterfactuals
from cfaug.stages.run import Run
from cfaug.train import Mixture, TrainingSets, train_classifier, validation_set


def train(run: Run) -> list[dict[str, Any]]:
    """The rows of ``results.jsonl``; those that it does not have yet are trained now."""
    path = run.out / "results.jsonl"
    rows = read_results(path) if path.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    todo = [(m, s) for s in run.recipe.train.seeds for m in run.recipe.train.methods if (m, s) not in done]
    if todo:
        generated = shards(run) if uses_counterfactuals(run.recipe) else None
        with run.timed("train"):
            for row in _train(run, todo, generated):
                rows.append(row)
                write_results(path, rows)
    return rows


def _train(run: Run, todo: list[tuple[str, int]], generated: ShardReader | None) -> Iterator[dict[str, Any]]:
    recipe, inputs, config = run.recipe, run.inputs, run.recipe.train
    validation = validation_set(inputs.val, inputs.grouper)
    images = load_images(inputs.test, progress=run.progress)
    targets = inputs.schema.index(inputs.target, inputs.test.table[inputs.target])
    # the images of every method and seed are the same few: decoded once
    sets = TrainingSets(inputs.train, inputs.grouper, generated, config.groups, inputs.oracle)
    with tqdm(todo, desc="train", unit="classifier", disable=not run.progress) as bar:
        for method, seed in bar:
            bar.set_postfix_str(f"{method}, seed {seed}")
            trained = train_classifier(
                method,
                sets.of(method, Mixture(config.p, config.null_p), seed),
                validation,
                settings_of(recipe),
                seed=seed,
                classes=inputs.schema[inputs.target].categories,
            )
            yield result_row(
                recipe=recipe.name,
                method=method,
                seed=seed,
                targets=targets,
                predictions=trained.predict(images).numpy(),
                table=inputs.test.table,
                grouper=inputs.grouper,
                train_table=inputs.train.table,
                train_seconds=round(trained.seconds, 2),
                selection=trained.selection,
            )
