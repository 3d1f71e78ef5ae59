"""The pipeline: one function per stage, each resumable; the only place that knows every room.

    diagnose -> fit -> plan -> generate -> train -> evaluate -> report

Each takes a :class:`~cfaug.stages.run.Run`, which :func:`open_run` opens. A stage runs what it needs first. What is done already is
recognised by what is on disk (a model that loads, a plan with its digest, committed shards, rows of results) and is not done again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfaug.lazy import lazy

if TYPE_CHECKING:
    from cfaug.stages.decoder_advice import advise_decoder as advise_decoder
    from cfaug.stages.diagnosis import diagnose as diagnose
    from cfaug.stages.discovery import discover as discover
    from cfaug.stages.evaluation import evaluate as evaluate
    from cfaug.stages.fitting import fit as fit
    from cfaug.stages.generation import fit_with_gate as fit_with_gate
    from cfaug.stages.generation import generate as generate
    from cfaug.stages.generation import plan as plan
    from cfaug.stages.recipe_checks import check_recipe as check_recipe
    from cfaug.stages.reporting import advice as advice
    from cfaug.stages.reporting import report as report
    from cfaug.stages.run import Run as Run
    from cfaug.stages.run import open_run as open_run
    from cfaug.stages.training import train as train
    from cfaug.stages.verification import regenerate_run as regenerate_run
    from cfaug.stages.verification import verify_run as verify_run
    from cfaug.stages.whole_run import run_recipe as run_recipe

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "decoder_advice": "advise_decoder",
        "diagnosis": "diagnose",
        "discovery": "discover",
        "evaluation": "evaluate",
        "fitting": "fit",
        "generation": "fit_with_gate generate plan",
        "recipe_checks": "check_recipe",
        "reporting": "advice report",
        "run": "Run open_run",
        "training": "train",
        "verification": "regenerate_run verify_run",
        "whole_run": "run_recipe",
    },
)
