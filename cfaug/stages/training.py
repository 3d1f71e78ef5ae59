"""Train every listed method with every seed, and test it: ``results.jsonl``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from cfaug.data.loading import images_of
from cfaug.errors import UsageError
from cfaug.judge.accuracy import read_results, result_row, write_results
from cfaug.offline import ShardReader
from cfaug.stages.attribute_classifiers import feature_store, settings_of
from cfaug.stages.checked_inputs import training_oracle, uses_counterfactuals
from cfaug.stages.generation import shards
from cfaug.stages.kept_classifiers import keep_classifier
from cfaug.stages.run import Run
from cfaug.train import Mixture, TrainingSets, train_classifier, validation_set
from cfaug.train.frozen import FrozenSets
from cfaug.train.heads import is_deterministic, train_head
from cfaug.train.method_data import Memory, standard_augmentation


def train(run: Run) -> list[dict[str, Any]]:
    """The rows of ``results.jsonl``; those that it does not have yet are trained now.

    UsageError where the rows that are there are of a net with other weights.
    """
    path = run.out / "results.jsonl"
    rows = read_results(path) if path.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    todo = [(m, s) for s in run.recipe.train.seeds for m in run.recipe.train.methods if (m, s) not in done]
    if todo:
        generated = shards(run) if uses_counterfactuals(run.recipe) else None
        make = _frozen if run.recipe.train.mode == "frozen" else _finetuned
        with run.timed("train"):
            for row in make(run, todo, generated):
                if any(one.get("backbone") != row.get("backbone") for one in rows):
                    raise UsageError(
                        f"{path} has rows of a net with other weights than train.weights has now; choose another --out, or --overwrite to start over"
                    )
                rows.append(row)
                if run.leads:
                    write_results(path, rows)
        if run.leads:
            shutil.rmtree(run.out / "train.partial", ignore_errors=True)
    return rows


def _finetuned(run: Run, todo: list[tuple[str, int]], generated: ShardReader | None) -> Iterator[dict[str, Any]]:
    """Nets, all of each trained."""
    recipe, inputs, config = run.recipe, run.inputs, run.recipe.train
    memory = Memory(recipe.data.memory_gb, recipe.data.workers)
    validation = validation_set(inputs.val, inputs.grouper, memory)
    images = images_of(inputs.test, None, memory.gigabytes, memory.workers, run.progress)
    height, width = inputs.train.image(0).shape[:2]
    augment = partial(standard_augmentation, (height, width)) if config.augment == "standard" else None
    # the images of every method and seed are the same few: decoded once
    sets = TrainingSets(
        inputs.train, inputs.grouper, generated, config.groups, training_oracle(recipe, inputs), memory, augment
    )
    with tqdm(todo, desc="train", unit="classifier", disable=not run.progress) as bar:
        for method, seed in bar:
            bar.set_postfix_str(f"{method}, seed {seed}")
            mixture = Mixture(config.p, config.null_p)
            trained = train_classifier(
                method,
                sets.of(method, mixture, seed),
                validation,
                settings_of(recipe),
                seed=seed,
                classes=inputs.schema[inputs.target].categories,
                synthetic=sets.synthetic(method, seed),
                # a net that is trained in minutes is not worth its checkpoints
                checkpoint=None
                if config.weights is None and config.model == "small_cnn"
                else run.out / "train.partial",
            )
            keep_classifier(run, method, seed, trained.model.state_dict())
            yield _row(run, method, seed, trained.predict(images).numpy(), trained.seconds, trained.selection)


def _frozen(run: Run, todo: list[tuple[str, int]], generated: ShardReader | None) -> Iterator[dict[str, Any]]:
    """Linear heads on features that are computed once; a head that no seed changes is trained once."""
    recipe, inputs, config = run.recipe, run.inputs, run.recipe.train
    store = feature_store(recipe, inputs, run.out / "features", run.progress)
    sets = FrozenSets(
        store, inputs.train, inputs.val, inputs.grouper, generated, config.groups, training_oracle(recipe, inputs)
    )
    test = store.of_dataset(inputs.test)
    known: dict[str, Any] = {}
    with tqdm(todo, desc="train", unit="head", disable=not run.progress) as bar:
        for method, seed in bar:
            bar.set_postfix_str(f"{method}, seed {seed}")
            head = known.get(method)
            if head is None:
                head = train_head(
                    method,
                    sets.of(method, Mixture(config.p, config.null_p), seed),
                    sets.validation,
                    settings_of(recipe),
                    seed,
                    inputs.schema[inputs.target].categories,
                    sets.synthetic(method, seed),
                )
                if is_deterministic(method):
                    known[method] = head
            keep_classifier(run, method, seed, {"weight": head.weight, "bias": head.bias}, store.digest)
            row = _row(run, method, seed, head.predict(test).numpy(), head.seconds, head.selection)
            yield {**row, "backbone": store.digest, "chosen": head.chosen}


def _row(run: Run, method: str, seed: int, predictions: Any, seconds: float, selection: str) -> dict[str, Any]:
    inputs = run.inputs
    return result_row(
        recipe=run.recipe.name,
        method=method,
        seed=seed,
        targets=inputs.schema.index(inputs.target, inputs.test.table[inputs.target]),
        predictions=predictions,
        table=inputs.test.table,
        grouper=inputs.grouper,
        train_table=inputs.train.table,
        train_seconds=round(seconds, 2),
        selection=selection,
    )
