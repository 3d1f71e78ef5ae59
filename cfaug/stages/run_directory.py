"""The output directory of a run: which recipe it belongs to, what is done, and how to start over.

A directory belongs to the configuration in its ``config.yaml``. The same recipe again continues there; a different one is
refused before anything is touched.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from cfaug import __version__
from cfaug.config import Recipe, load_recipe
from cfaug.data.files import expand, replace_file
from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.offline import Plan
from cfaug.offline.commit import open_destination
from cfaug.offline.format import PLAN_HEADER
from cfaug.recipe_file import dump_yaml

log = logging.getLogger(__name__)

MADE = ("plan", "model", "fit.partial", "shards", "evaluation", "results.jsonl", "report.html")
"""What a configuration has made. A directory without any of it may still get a different recipe: so far the data were only looked at."""
PRODUCTS = (
    *MADE, "classifiers", "effects.jsonl", "metrics.jsonl", "review.html", "audit", "gate", "diagnosis.json", "discovery.json", "assumptions.json", "ASSUMPTIONS.md", "stats.jsonl", "jobs", "tensorboard",
    "run.json", "config.yaml",
)  # fmt: skip
"""Everything that a run writes, its lock apart; ``--overwrite`` removes exactly this."""
MODEL = ("model", "fit.partial", "assumptions.json", "ASSUMPTIONS.md", "run.json")
"""What stays when only the plan and the stages after it start over; ``run.json`` says on which images the model was fitted."""


class RunDirectory:
    """One output directory.

    Args:
        path: created by :meth:`claim` where it does not exist.
        recipe: the resolved configuration.
        overwrite: remove an earlier run's products first.
        keep_model: keep its model even so, where everything that it was fitted with is the same.

    Raises:
        UsageError: the directory holds the run of a different configuration, or something that is not a run.
    """

    def __init__(self, path: Path, recipe: Recipe, overwrite: bool = False, keep_model: bool = False) -> None:
        self.path, self.recipe, self.overwrite = path, recipe, overwrite
        if path.exists() and not path.is_dir():
            raise UsageError(f"--out: expected a directory, got the file {path}; choose another place")
        found = self._there(PRODUCTS)
        if found and not self._is_run():
            # refused with --overwrite as well: a folder called "model" or "shards" may hold something else
            raise UsageError(
                f"{path} holds {found[0]}, but no config.yaml of ours says that it is a run's; choose a different --out, or remove it yourself"
            )
        self._model_kept = overwrite and keep_model and self._owner_differs(Recipe.model_identity) is None
        changed = self._owner_differs(Recipe.identity) if found and not overwrite else None
        if changed and self._there(MADE):
            raise UsageError(
                f"{path} holds a run of a different configuration ({changed}); choose a different --out, or --overwrite to start over"
            )
        # a user may diagnose, discover, edit the graph and then run, all in one directory
        self._changes_hands = changed is not None

    def claim(self, data: str) -> None:
        """Start over where that was asked for, and write ``config.yaml`` and ``run.json``: the directory is this recipe's, on these data.

        Args:
            data: digest of the attribute tables and pixels.

        Raises:
            UsageError: the directory holds a run on other data (a folder of the same name, or one that has changed).
        """
        before = self.read_json("run.json") if self.overwrite else None
        if self.overwrite:
            self._clear(MODEL if self._model_kept else ())
        owner, made = self.read_json("run.json"), self._there(MADE)
        if made and not (isinstance(owner, dict) and "data" in owner):
            raise UsageError(
                f"{self.path} holds {made[0]}, but run.json no longer says of which images; restore run.json, or --overwrite to start over"
            )
        other = isinstance(owner, dict) and owner.get("data", data) != data
        if other and self._model_kept:  # the model is of other images: it goes as well
            self._clear(())
            owner, made, other = None, [], False
        if other and made:
            raise UsageError(
                f"{self.path} holds a run on other images or attributes (data {str(owner['data'])[:12]}, now {data[:12]}); "
                "choose a different --out, or --overwrite to start over"
            )
        renewed = self._changes_hands or other
        if renewed:
            (self.path / "diagnosis.json").unlink(missing_ok=True)  # of a different graph or of different images
            if other:
                (self.path / "discovery.json").unlink(
                    missing_ok=True
                )  # a discovery depends on the images, not on the graph
        config = self.path / "config.yaml"
        # methods, seeds and the destination may have changed
        if renewed or not config.exists() or _may_change(load_recipe(config)) != _may_change(self.recipe):
            self.write("config.yaml", dump_yaml(self.recipe.to_dict()))
        if renewed or not isinstance(owner, dict) or owner.get("fingerprint") != self.recipe.fingerprint():
            fresh = {"fingerprint": self.recipe.fingerprint(), "data": data, "seed": self.recipe.seed}
            spent = before.get("seconds") or before.get("earlier") if isinstance(before, dict) else None
            earlier = {"earlier": spent} if spent else {}  # from which the minutes left are told
            self.write_json("run.json", {**fresh, **earlier, "versions": versions(), "seconds": {}})

    def _there(self, names: Collection[str]) -> list[str]:
        return [name for name in names if (self.path / name).exists()]

    def _is_run(self) -> bool:
        run = self.read_json("run.json")
        if isinstance(run, dict) and "fingerprint" in run:  # perhaps of a version whose recipes we cannot read
            return (self.path / "config.yaml").exists()
        try:
            load_recipe(self.path / "config.yaml")
        except UsageError:
            return False
        return True

    def _owner_differs(self, identity: Any) -> str | None:
        """Where the owner's configuration differs from ours in ``identity`` of a recipe; None where it does not."""
        try:
            owner = load_recipe(self.path / "config.yaml")
        except UsageError as error:
            return str(error)
        return _difference(identity(owner), identity(self.recipe)) or None

    def _clear(self, keep: Collection[str]) -> None:
        """Remove what a run has written, `keep` excepted; UsageError while a different process is writing shards here."""
        if (self.path / "shards").is_dir():
            with open_destination(self.path).session(overwrite=True):
                pass
        for product in [*(self.path / name for name in PRODUCTS if name not in keep), *self.path.glob("stats-*.jsonl")]:
            if product.is_dir():
                shutil.rmtree(product)
            else:
                product.unlink(missing_ok=True)

    def drop_images(self) -> None:
        """Remove the model, the shards and all that came of them; plan, configuration and what is known of the data stay."""
        self._clear(("plan", "config.yaml", "run.json", "diagnosis.json", "discovery.json"))

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file in one step.

        Raises:
            CfaugError: the disk is full or not writable; nothing stays under the final name.
        """
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise CfaugError(
                f"cannot write {path}: {error.strerror}; free some space and run the same command again"
            ) from None

    def write_json(self, name: str, content: Any) -> None:
        """Replace a JSON file in one step."""
        self.write(name, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None when it is missing or damaged (then its stage runs again)."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def took(self, stage: str, seconds: float) -> None:
        """Add a stage's wall clock to ``run.json``."""
        content = self.read_json("run.json") or {}
        spent = content.setdefault("seconds", {})
        spent[stage] = round(spent.get(stage, 0.0) + seconds, 1)
        self.write_json("run.json", content)


def _may_change(recipe: Recipe) -> tuple[Any, ...]:
    """The settings that may change from one command to the next."""
    return recipe.train, recipe.generate.destination


def _difference(first: dict[str, Any], second: dict[str, Any], where: str = "") -> str:
    for key in first:
        if isinstance(first[key], dict) and isinstance(second[key], dict) and first[key].keys() == second[key].keys():
            if found := _difference(first[key], second[key], f"{where}{key}."):
                return found
        elif first[key] != second[key]:
            return f"{where}{key} was {first[key]!r}, now {second[key]!r}"
    return ""


def versions() -> dict[str, str]:
    """Versions that can change a byte."""
    names = ("torch", "torchvision", "diffusers", "numpy", "pandas", "zuko", "webdataset", "Pillow")
    found = {name: metadata.version(name) for name in names}
    return {"cfaug": __version__, "python": platform.python_version(), **found}


# -- questions about a directory that is only looked at ----------------------------------------------------------


def recorded_destination(directory: Path) -> str | None:
    """The destination in the ``config.yaml`` of the run in `directory`; None where there is no such run or it has none."""
    config = directory / "config.yaml"
    try:
        return load_recipe(config).generate.destination if config.exists() else None
    except UsageError:  # of a different version, or not a configuration: opening the directory says so
        return None


def shards_of(place: str) -> str:
    """Where the shards of a run are: its ``generate.destination`` where it has one, else ``place`` itself, ``~`` expanded."""
    return place if "://" in place else local(recorded_destination(expand(place)) or place)


def local(place: str) -> str:
    """A URL as it is, or a path with its ``~`` expanded."""
    return place if "://" in place else str(expand(place))


def saved_plan(directory: Path) -> Plan | None:
    """The plan of the run in `directory`, if it has one."""
    return Plan.load(directory / "plan") if (directory / "plan" / PLAN_HEADER).exists() else None


def whole_plan(directory: Path) -> Plan | None:
    """The same; None, and a line in the log, where the plan is damaged or of a different format: its recipe draws it again."""
    try:
        return saved_plan(directory)
    except ShardError as error:
        log.warning("%s; the recipe's plan is drawn again now", error)
        return None
