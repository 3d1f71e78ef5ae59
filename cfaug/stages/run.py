"""A run: a recipe, its opened data, and the directory that holds what the stages have made. Each stage is a function of a run."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cfaug.config import Recipe
from cfaug.data.files import expand
from cfaug.decode.diffusion import distributed
from cfaug.stages.checked_inputs import Inputs, open_inputs
from cfaug.stages.masks import with_masks
from cfaug.stages.ranks import rank_of, with_own_device
from cfaug.stages.run_directory import RunDirectory, local, recorded_destination
from cfaug.stages.run_lock import LOCK, run_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A recipe at work in its directory.

    ``rank``: of this process among several; only the process of rank 0 writes, shards apart. ``sharing``: the processes generate
    one plan, each its part (engines torchrun and slurm); without it they fit one decoder together.
    """

    recipe: Recipe
    inputs: Inputs
    directory: RunDirectory
    rank: int = 0
    sharing: bool = False
    overwrite: bool = False
    progress: bool = True
    whole: tuple[str, ...] = ()
    """The stages of a whole run, in their order, where this is one and its progress is shown."""

    @property
    def out(self) -> Path:
        """The run's directory."""
        return self.directory.path

    @property
    def place(self) -> str:
        """Where ``shards/`` is: the run's directory, or the recipe's destination."""
        return local(self.recipe.generate.destination or str(self.out))

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @contextmanager
    def timed(self, stage: str, kept: bool = True) -> Iterator[None]:
        """Log a stage's beginning and end, and add its wall clock to ``run.json`` where it is to be ``kept``."""
        started = time.monotonic()
        log.log(logging.INFO if self.leads else logging.DEBUG, "%s ...", self._announced(stage))
        yield
        seconds = time.monotonic() - started
        if self.leads:
            if kept:
                self.directory.took(stage, seconds)
            log.info("%s done in %.1f s", stage, seconds)

    def step(self, stage: str) -> AbstractContextManager[None]:
        """Around a short stage, which is spoken of as a part of a whole run only."""
        return self.timed(stage, kept=False) if stage in self.whole else nullcontext()

    def _announced(self, stage: str) -> str:
        """Which of how many stages it is, and how long the rest took when this directory was filled before."""
        if stage not in self.whole:
            return stage
        place = self.whole.index(stage)
        earlier = (self.directory.read_json("run.json") or {}).get("earlier", {})
        left = sum(earlier.get(name, 0.0) for name in self.whole[place:])
        told = f", about {max(1, round(left / 60))} min left" if left else ""
        return f"stage {place + 1} of {len(self.whole)}: {stage}{told}"

    def meet(self) -> None:
        """Wait for the other processes; there are none without torchrun, and none that matter while a plan is shared."""
        if not self.sharing:
            _meet(self.recipe)


def _meet(recipe: Recipe) -> None:
    distributed.join(recipe.decoder.device)
    distributed.first(True, recipe.decoder.device)


@contextmanager
def open_run(
    recipe: Recipe,
    out: str | Path,
    overwrite: bool = False,
    keep_model: bool = False,
    sharing: bool = False,
    progress: bool = True,
) -> Iterator[Run]:
    """Open the data of ``recipe``, check them, and take the directory ``out``, which stays locked until the run is closed.

    Args:
        recipe: the resolved configuration.
        out: the run's directory.
        overwrite: start over.
        keep_model: overwriting keeps the fitted model, where data and all that it was fitted with are the same.
        sharing: this process is one of several that generate one plan. Model and plan must be there.
        progress: show bars on everything that lasts.

    Raises:
        UsageError, DataError: from the checks of :func:`cfaug.stages.checked_inputs.open_inputs`, before anything is written; a
            directory of a different run, or one that a different process works in.
    """
    place = expand(out)
    recorded = None if overwrite else recorded_destination(place)
    if recipe.generate.destination is None and recorded is not None:  # given once, it holds for every later command
        recipe = dataclasses.replace(recipe, generate=dataclasses.replace(recipe.generate, destination=recorded))
    if sharing:  # each process on its own: no group, and a graphics card each
        recipe = with_own_device(recipe)
        rank = rank_of(recipe.generate.engine)
    else:
        rank = 0 if distributed.primary() else 1
    progress = progress and rank == 0
    with ExitStack() as held:
        writes = rank == 0 and not sharing
        lock = run_lock(place, shared=sharing)
        early = sharing or (writes and (place / LOCK).exists())
        if early:  # before the images are looked at, which may take minutes
            held.enter_context(lock)
        fitted = not overwrite and (place / "model" / "model.json").exists()
        inputs = with_masks(recipe, open_inputs(recipe, progress, fitted), place / "masks")
        directory = RunDirectory(place, recipe, overwrite, keep_model) if writes else None
        if directory is not None:
            if not early:
                held.enter_context(lock)
            directory.claim(inputs.digest)
        if not sharing:
            _meet(recipe)
        yield Run(recipe, inputs, directory or RunDirectory(place, recipe), rank, sharing, overwrite, progress)
