"""What is needed to make a run again, as lines of text that can be copied out of the report."""

from __future__ import annotations

import hashlib
from typing import Any

from cfaug.offline import Plan
from cfaug.recipe_file import dump_yaml
from cfaug.stages.run import Run
from cfaug.stages.run_directory import saved_plan, versions


def reproducibility(run: Run) -> dict[str, str]:
    """Name -> text: the command, seeds, digests of what went in and came out, versions, and the wall clock of each stage.

    The digests of plan, model and gate are left out where the run has none.
    """
    recipe, directory = run.recipe, run.directory
    spent = (directory.read_json("run.json") or {}).get("seconds", {})
    plan: Plan | None = saved_plan(run.out)
    made = {
        "plan": plan and plan.digest,
        "model": _digest(run, "model/model.json"),
        "gate": _digest(run, "gate/gate.json"),
    }
    return {
        "command": "cfaug run config.yaml --out NEW",
        "where": "in the directory of this report, whose config.yaml is the resolved recipe",
        "seed of the run": str(recipe.seed),
        "seeds of training": ", ".join(map(str, recipe.train.seeds)),
        "config": "sha256 " + hashlib.sha256(dump_yaml(recipe.to_dict()).encode()).hexdigest(),
        "data": run.inputs.digest,
        **{name: digest for name, digest in made.items() if digest},
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "seconds": ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent.items()) or "not recorded",
    }


def _digest(run: Run, name: str) -> str | None:
    content: Any = run.directory.read_json(name)
    found = content.get("digest") if isinstance(content, dict) else None
    return None if found is None else str(found)
