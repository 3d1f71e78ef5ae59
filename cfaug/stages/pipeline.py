"""A recipe at work in its directory."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfaug import causal
from cfaug.causal import SCM, refuse_unconfirmed
from cfaug.config import Recipe
from cfaug.data import load_images
from cfaug.decode import CounterfactualModel, DiffusionDecoder, ImageMechanism
from cfaug.decode.diffusion import distributed as processes
from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.judge.accuracy import read_results, result_row, write_results
from cfaug.judge.report import write_report
from cfaug.offline import GenerateReport, Plan, ShardReader, VerifyReport, generate, make_plan, verify
from cfaug.offline.commit import open_destination
from cfaug.offline.format import PLAN_HEADER
from cfaug.stages.attribute_classifiers import settings_of
from cfaug.stages.diagnosis import diagnosis
from cfaug.stages.discovery import Findings, discover
from cfaug.stages.evaluation import Evaluation, evaluate_counterfactuals
from cfaug.stages.inputs import Inputs, open_inputs, refuse_other_model, uses_counterfactuals
from cfaug.stages.ranks import SHARED, missing_shards, rank_of, recorded_destination, with_own_device
from cfaug.stages.reporting import report_data, shard_confounding
from cfaug.stages.run_directory import RunDirectory, versions
from cfaug.stages.validation import Validation
from cfaug.train import Mixture, TrainingSets, train_classifier, validation_set

log = logging.getLogger(__name__)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CfaugError(
            f"cannot write the model to {folder}: {error.strerror}; free some space and run again"
        ) from None


class Pipeline:
    """The stages of one recipe in one directory.

    Args:
        recipe: the resolved configuration.
        out: the run's directory.
        overwrite: start over.
        progress: tqdm bars on everything that lasts.
        sharing: this process is one of several that generate one plan, each its part (engines torchrun and slurm). Model
            and plan must be there; nothing but shards is written.
        keep_model: overwriting keeps the fitted model, where data and all that it was fitted with are the same.

    Raises:
        UsageError, DataError: from the checks of :func:`cfaug.stages.inputs.open_inputs`, before anything is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        overwrite: bool = False,
        progress: bool = True,
        sharing: bool = False,
        keep_model: bool = False,
    ) -> None:
        self.sharing = sharing
        recorded = None if overwrite else recorded_destination(out)
        if recipe.generate.destination is None and recorded is not None:  # said once, known from then on
            recipe = dataclasses.replace(recipe, generate=dataclasses.replace(recipe.generate, destination=recorded))
        if sharing:  # each process on its own: no group, and a graphics card each
            recipe = with_own_device(recipe)
        self.recipe = recipe
        self.overwrite = overwrite
        self.rank = rank_of(recipe.generate.engine) if sharing else 0
        self.leads = self.rank == 0 if sharing else processes.primary()
        """Whether this process writes; under torchrun the others only help to fit, or write nothing but shards."""
        self.progress = progress = progress and self.leads
        fitted = not overwrite and (Path(out) / "model" / "model.json").exists()
        self.inputs: Inputs = open_inputs(recipe, progress, fitted)
        if self.leads and not sharing:
            self.directory = RunDirectory(out, recipe, overwrite, keep_model)
            self.directory.claim(self.inputs.digest)
        self._meet()
        if not self.leads or sharing:
            self.directory = RunDirectory(out, recipe)
        self.out = self.directory.path
        self.place: str | Path = recipe.generate.destination or self.out
        """Where ``shards/`` is: the run's directory, or the recipe's destination."""

    def _meet(self) -> None:
        """Wait for the other processes; there are none without torchrun, and none that matter to one that shares a plan."""
        if self.sharing:
            return
        processes.join(self.recipe.decoder.device)
        processes.first(True, self.recipe.decoder.device)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        log.log(logging.INFO if self.leads else logging.DEBUG, "%s ...", stage)
        yield
        seconds = time.monotonic() - started
        if not self.leads:
            return
        self.directory.took(stage, seconds)
        log.info("%s done in %.1f s", stage, seconds)

    # -- stages ------------------------------------------------------------------------------------------------------

    def diagnose(self) -> dict[str, Any]:
        """Measure the confounding, test the graph, foretell what the plan will do; writes ``diagnosis.json``."""
        counterfactual = uses_counterfactuals(self.recipe)
        plan = (self._saved_plan() or self._make_plan()) if counterfactual else None  # looked at, not yet written
        found = diagnosis(self.recipe, self.inputs, self.scm, plan)
        self.directory.write_json("diagnosis.json", found)
        return found

    def _diagnosed(self) -> dict[str, Any]:
        """The diagnosis that is on disk, when it says all that this version and the listed methods ask for; else a new one."""
        found = self.directory.read_json("diagnosis.json")
        asked = {"falsification"} | ({"forecast"} if uses_counterfactuals(self.recipe) else set())
        return found if isinstance(found, dict) and asked <= found.keys() else self.diagnose()

    def discover(self) -> Findings:
        """Ask the training table for edges between the attributes; writes ``discovery.json``."""
        with self._timed("discover"):
            found = discover(self.recipe, self.inputs, self.progress)
        self.directory.write_json("discovery.json", found.to_json())
        return found

    @cached_property
    def scm(self) -> SCM:
        """The attributes' SCM: the fitted model's when there is one, else fitted now; the same seed fits the same."""
        if "model" in self.__dict__:
            return self.model.scm
        inputs = self.inputs
        scm = SCM(inputs.graph, inputs.schema, self.recipe.scm.mechanisms)
        return scm.fit(inputs.train.table, seed=self.recipe.seed)

    @cached_property
    def model(self) -> CounterfactualModel:
        """The fitted model: loaded when it is on disk, else fitted now.

        Raises:
            ShardError: a corrupt checkpoint, or the model of another graph or schema.
        """
        folder, device = self.out / "model", self.recipe.decoder.device
        if not processes.first((folder / "model.json").exists(), device):
            self._fit(folder)
        model = CounterfactualModel.load(folder, device)
        refuse_other_model(self.inputs, model.scm.graph, model.schema, folder)
        # a model's card is written once; every later command only opens the model
        if self.leads and self.directory.read_json("assumptions.json") is None:
            card = causal.assumption_card(model.scm, self.inputs.train.table)
            self.directory.write("ASSUMPTIONS.md", card["text"])
            self.directory.write_json("assumptions.json", card)
        return model

    def fit(self) -> CounterfactualModel:
        """Fit the SCM and train the decoder; writes ``model/``. Killed, it goes on from ``fit.partial/``."""
        return self.model

    def _fit(self, folder: Path) -> None:
        partial = self.out / "fit.partial"
        with self._timed("fit"):
            decoder = self._fit_decoder(self.scm, partial)
            if self.leads:
                with _writing(folder):
                    CounterfactualModel(self.scm, decoder).save(folder)
                    (self.out / "assumptions.json").unlink(missing_ok=True)  # of a model that was here before
                shutil.rmtree(partial, ignore_errors=True)
        self._meet()

    def _fit_decoder(self, scm: SCM, partial: Path) -> ImageMechanism:
        """The decoder that the recipe asks for."""
        config, train, seed = self.recipe.decoder, self.inputs.train, self.recipe.seed
        parents = self.inputs.graph.parents("image")
        score = Validation(self.recipe, self.inputs, scm, self.progress) if config.validate_every else None
        decoder = DiffusionDecoder(scm.schema, parents, config)
        return decoder.fit(train, seed, self.progress, checkpoint=partial / "diffusion", score=score)

    @cached_property
    def planned(self) -> Plan:
        """The plan: loaded when it is on disk, else made now."""
        if (plan := self._saved_plan()) is None:
            plan = self._make_plan()
            plan.save(self.out / "plan")
            plan = Plan.load(self.out / "plan")  # small to send to workers
        return plan

    def _saved_plan(self) -> Plan | None:
        folder = self.out / "plan"
        return Plan.load(folder) if (folder / PLAN_HEADER).exists() else None

    def _make_plan(self) -> Plan:
        config, inputs = self.recipe.plan, self.inputs
        return make_plan(
            config.strategy,
            inputs.train.table,
            inputs.schema,
            per_image=config.per_image,
            null_fraction=config.null_fraction,
            replicas=config.replicas,
            joint=config.joint,
            attributes=config.attributes,
            seed=self.recipe.seed,
            samples_per_shard=self.recipe.generate.samples_per_shard,
        )

    def plan(self) -> Plan:
        """Decide every counterfactual; writes ``plan/``. A damaged plan is made again: the same recipe gives the same one."""
        try:
            return self.planned
        except ShardError as error:
            log.warning("%s; this is being done", error)
            shutil.rmtree(self.out / "plan")
            return self.planned

    def generate(self) -> GenerateReport:
        """Write the shards that are missing; UsageError, before anything is fitted, while an edge is not confirmed."""
        refuse_unconfirmed(self.inputs.graph)
        config = self.recipe.generate
        if self.sharing and not all((self.out / name).exists() for name in ("model/model.json", f"plan/{PLAN_HEADER}")):
            raise UsageError(
                f"expected a model and a plan in {self.out} before several processes share the work; run "
                f"`cfaug plan RECIPE.yaml --out {self.out}` and `cfaug fit RECIPE.yaml --out {self.out}` first"
            )
        if config.destination:  # a bucket that is not there is found out before hours of fitting
            open_destination(self.place).committed()
        model, plan = self.model, self.planned
        suffix = f"-{self.rank}" if self.sharing else ""
        options = (
            {"folder": str(self.out / "jobs"), **config.options} if config.engine == "submitit" else config.options
        )
        with self._timed("generate"):
            # committed shards are recognised by their manifest rows, so asking twice costs a tenth of a second
            return generate(
                model,
                self.inputs.train,
                plan,
                self.place,
                engine=config.engine,
                workers=config.workers,
                batch_size=config.batch_size,
                progress=self.progress,
                overwrite=self.overwrite
                and (self.sharing or bool(config.destination)),  # else they went with the directory
                image=config.image,
                retries=config.retries,
                options=options,
                log_to=self.out / f"stats{suffix}.jsonl",
                tensorboard=self.out / "tensorboard" if config.tensorboard else None,
            )

    @cached_property
    def shards(self) -> ShardReader:
        """The complete shards; what is missing of them is generated first."""
        engine = self.recipe.generate.engine
        if engine not in SHARED:
            self.generate()
        elif missing := missing_shards(self.place, self.planned):
            raise UsageError(
                f"{len(missing)} shards of {self.place} are not there yet ({missing[0]}), and the engine {engine} is started "
                "from outside; run `cfaug generate` with it first, or --generate.engine=local"
            )
        return ShardReader(self.place)

    def train(self) -> list[dict[str, Any]]:
        """Train every method with every seed and test it; rows that ``results.jsonl`` has already are kept."""
        path = self.out / "results.jsonl"
        rows = read_results(path) if path.exists() else []
        done = {(row["method"], row["seed"]) for row in rows}
        todo = [(m, s) for s in self.recipe.train.seeds for m in self.recipe.train.methods if (m, s) not in done]
        if not todo:
            return rows
        if uses_counterfactuals(self.recipe):
            _ = self.shards  # timed as a stage of its own
        with self._timed("train"):
            for row in self._train(todo):
                rows.append(row)
                write_results(path, rows)
        return rows

    def _train(self, todo: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        from tqdm.auto import tqdm

        recipe, inputs = self.recipe, self.inputs
        config = recipe.train
        validation = validation_set(inputs.val, inputs.grouper)
        images = load_images(inputs.test, progress=self.progress)
        targets = inputs.schema.index(inputs.target, inputs.test.table[inputs.target])
        shards = self.shards if uses_counterfactuals(recipe) else None
        # the images of every method and seed are the same few: decoded once
        sets = TrainingSets(inputs.train, inputs.grouper, shards, config.groups, inputs.oracle)  # type: ignore[arg-type]
        with tqdm(todo, desc="train", unit="classifier", disable=not self.progress) as bar:
            for method, seed in bar:
                bar.set_postfix_str(f"{method}, seed {seed}")
                source = sets.of(method, Mixture(config.p, config.null_p), seed)
                trained = train_classifier(
                    method,
                    source,
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

    @property
    def _evaluation(self) -> Evaluation | None:
        folder = self.out / "evaluation"
        figures = self.directory.read_json("evaluation/figures.json")
        if figures is None:
            return None
        try:
            with np.load(folder / "images.npz", allow_pickle=False) as arrays:
                return Evaluation(figures, *(arrays[name] for name in ("factual", "reconstruction", "counterfactual")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def evaluate(self) -> Evaluation:
        """Judge the counterfactuals; writes ``evaluation/``."""
        found = self._evaluation
        if found is None:
            shards = self.shards
            with self._timed("evaluate"):
                found = evaluate_counterfactuals(
                    self.recipe, self.inputs, self.model, self.planned, shards, self.progress
                )
                images = io.BytesIO()
                np.savez(
                    images,
                    factual=found.factual,
                    reconstruction=found.reconstruction,
                    counterfactual=found.counterfactual,
                )
                self.directory.write("evaluation/images.npz", images.getvalue())
                self.directory.write_json("evaluation/figures.json", found.figures)
        return found

    def report(self) -> Path:
        """Write ``report.html``: trains and evaluates first when that is missing."""
        rows = self.train()
        counterfactual = uses_counterfactuals(self.recipe)
        evaluation = self.evaluate() if counterfactual else None
        after = shard_confounding(self.inputs, self.shards) if counterfactual else {}
        spent = (self.directory.read_json("run.json") or {}).get("seconds", {})
        facts = {
            "recipe": self.recipe.name,
            "seed": str(self.recipe.seed),
            "training images": str(len(self.inputs.train)),
            "counterfactuals": str(len(self.planned)) if counterfactual else "none",
            **{f"{stage} took": f"{seconds:.0f} s" for stage, seconds in spent.items()},
            **{
                name: version
                for name, version in versions().items()
                if name in ("cfaug", "python", "torch", "diffusers")
            },
            "resolved configuration": json.dumps(self.recipe.to_dict()),
        }
        path = self.out / "report.html"
        found = self._diagnosed()
        content = report_data(
            self.recipe,
            self.inputs,
            rows,
            evaluation,
            self.model if counterfactual else None,
            after,
            facts,
            diagnosis=found,
            falsification=found["falsification"],
            card=self.directory.read_json("assumptions.json"),
            discovery=self.directory.read_json("discovery.json"),
        )
        write_report(path, content)
        return path

    def verify(self) -> VerifyReport:
        """Re-read every committed byte."""
        return verify(self.place, self.planned)

    def run(self) -> Path:
        """Every stage; counterfactuals only if a listed method uses them."""
        if uses_counterfactuals(self.recipe):
            refuse_unconfirmed(self.inputs.graph)
        self._diagnosed()
        path = self.report()
        if uses_counterfactuals(self.recipe) and not (report := self.verify()).ok:
            raise ShardError(
                f"the shards just written do not verify: {report.problems[0]}; check the disk and run with --overwrite"
            )
        return path
