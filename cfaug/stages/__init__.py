"""The pipeline: one function per stage, each resumable; the only place that knows every room.

    diagnose -> fit -> plan -> generate -> train -> evaluate -> report

Each takes a :class:`~cfaug.stages.run.Run`, which :func:`open_run` opens. A stage runs what it needs first. What is done already is
recognised by what is on disk (a model that loads, a plan with its digest, committed shards, rows of results) and is not done again.
"""

from __future__ import annotations

from cfaug.stages.diagnosis import diagnose
from cfaug.stages.discovery import discover
from cfaug.stages.evaluation import evaluate
from cfaug.stages.fitting import fit
from cfaug.stages.generation import generate, plan
from cfaug.stages.reporting import report
from cfaug.stages.run import Run, open_run
from cfaug.stages.training import train
from cfaug.stages.whole_run import run_recipe

__all__ = [
    "Run",
    "diagnose",
    "discover",
    "evaluate",
    "fit",
    "generate",
    "open_run",
    "plan",
    "report",
    "run_recipe",
    "train",
]
