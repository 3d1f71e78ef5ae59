"""What this installation has, and whether ``cfaug run`` would start with a recipe: one verdict per line."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from cfaug.config import Recipe, load_recipe
from cfaug.data.files import expand
from cfaug.errors import CfaugError
from cfaug.stages.checked_inputs import Inputs, check_devices, open_inputs
from cfaug.stages.decoder_advice import advise_decoder
from cfaug.stages.near_duplicates import duplicates_in_run
from cfaug.stages.recipe_checks import later_checks
from cfaug.stages.run_directory import RunDirectory, versions

T = TypeVar("T")
LITTLE_DISK = 2.0  # GB: a run of some thousand photographs writes a few hundred megabytes


@dataclass(frozen=True)
class Verdict:
    """``refused``: the run would not start. ``what`` was looked at, and what was ``found``; where it is not ok, that says what to do."""

    verdict: Literal["ok", "warning", "refused"]
    what: str
    found: str


@dataclass
class Examination:
    """Every verdict, the facts behind them, and the exit code: that of the first refusal, else 0."""

    place: str | None
    verdicts: list[Verdict] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def say(self, verdict: Literal["ok", "warning", "refused"], what: str, found: object) -> None:
        """One more line."""
        self.verdicts.append(Verdict(verdict, what, str(found)))

    def ask(self, what: str, question: Callable[[], T], answer: Callable[[T], str]) -> T | None:
        """The answer to a question, as a line of its own; None, and a refusal, where it cannot be had."""
        try:
            with _heard(self, what):
                found = question()
        except CfaugError as error:
            self.exit_code = self.exit_code or error.exit_code
            self.say("refused", what, error)
            return None
        self.say("ok", what, answer(found))
        return found

    def to_json(self) -> dict[str, Any]:
        """The facts, with ``verdicts`` and whether the run ``starts``."""
        return {**self.facts, "verdicts": [asdict(line) for line in self.verdicts], "starts": self.exit_code == 0}

    def __str__(self) -> str:
        width = max(len(line.what) for line in self.verdicts)
        lines = [f"{line.verdict:<8} {line.what:<{width}}  {line.found}" for line in self.verdicts]
        if self.exit_code:
            last = f"`cfaug run {self.place}` would not start: mend what is refused, and ask again"
        elif self.place:
            last = f"`cfaug run {self.place}` would start"
        else:
            last = "this installation can run; `cfaug doctor RECIPE.yaml` looks at a recipe and its images"
        if warnings := sum(line.verdict == "warning" for line in self.verdicts):
            last += f" ({warnings} warning{'s' * (warnings > 1)})"
        return "\n".join([*lines, last])


def examine(place: str | None, overrides: Sequence[str] = ()) -> Examination:
    """Versions and machine; with ``place``, a recipe or the directory of a run, all that `cfaug run` would refuse before it trains."""
    found = Examination(place)
    free = round(shutil.disk_usage(".").free / 1e9, 1)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    found.facts = {
        "versions": versions(), "cores": os.cpu_count(), "torch threads": torch.get_num_threads(), "cuda": cuda, "mps": mps,
        "free disk (GB)": free,
    }  # fmt: skip
    found.say("ok", "versions", ", ".join(f"{name} {version}" for name, version in versions().items()))
    graphics = "cuda" if cuda else "mps" if mps else "no graphics card"
    found.say("ok", "machine", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch, {graphics}")
    little = free < LITTLE_DISK
    found.say("warning" if little else "ok", "disk", f"{free} GB are free here" + "; make room" * little)
    if place is not None:
        run = expand(place)
        there = run if run.is_dir() else None
        path = run if there is None else run / "config.yaml"
        recipe = found.ask("recipe", lambda: load_recipe(path, overrides), lambda made: made.name)
        if recipe is not None:
            _examine_recipe(found, recipe, there)
    return found


def _examine_recipe(found: Examination, recipe: Recipe, run: Path | None) -> None:
    out = run or Path("shards") / recipe.name
    try:
        RunDirectory(out, recipe)  # looks, and writes nothing
    except CfaugError as error:  # another --out may be given
        found.say("warning", "directory", error)
    if found.ask("devices", lambda: check_devices(recipe), ", ".join) is None:
        recipe = _on_cpu(recipe)  # a login node: everything else can be checked here
    fitted = (out / "model" / "model.json").exists() if run else False
    inputs = found.ask("inputs", lambda: open_inputs(recipe, False, fitted), _counted)
    if inputs is None:
        return
    found.facts["recipe"] = {split: len(getattr(inputs, split)) for split in ("train", "val", "test")}
    for what, check in later_checks(recipe, inputs).items():
        found.ask(what, check, lambda said: said)
    for line in advise_decoder(recipe, inputs):
        name, _, advice = line.partition(": ")
        found.facts[f"decoder for {name}"] = advice
        found.say("ok", f"decoder for {name}", advice)
    if run is not None and (notes := " ".join(duplicates_in_run(recipe, inputs, run))):
        found.facts["near-duplicates"] = notes
        found.say("warning" if notes.startswith("WARNING") else "ok", "near-duplicates", notes)


def _on_cpu(recipe: Recipe) -> Recipe:
    decoder, train = replace(recipe.decoder, device="cpu"), replace(recipe.train, device="cpu")
    return replace(recipe, decoder=decoder, train=train)


def _counted(inputs: Inputs) -> str:
    height, width = inputs.train.image(0).shape[:2]
    counts = ", ".join(f"{len(getattr(inputs, split))} {split}" for split in ("train", "val", "test"))
    return f"{counts}, of {width}x{height} px; every one can be read"


@contextmanager
def _heard(found: Examination, what: str) -> Iterator[None]:
    """What is logged inside becomes lines, warnings marked as such."""

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.say("warning" if record.levelno >= logging.WARNING else "ok", what, record.getMessage())

    logger, heard = logging.getLogger("cfaug"), Heard()
    logger.addHandler(heard)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(heard)
        logger.propagate = before
