"""The output directory of a run: whose it is, what is done, and how to start over.

A directory belongs to the configuration in its ``config.yaml``. The same recipe again continues there; another one is
refused before anything is touched.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from cfaug import __version__
from cfaug.config import Recipe, load_recipe
from cfaug.data.files import replace_file
from cfaug.errors import CfaugError, UsageError
from cfaug.offline.commit import open_destination
from cfaug.settings import dump_yaml

MADE = ("plan", "model", "fit.partial", "shards", "evaluation", "results.jsonl", "report.html")
"""What a configuration has made. A directory without any of it is nobody's yet: what is there only looked at the data."""
PRODUCTS = (
    "plan",
    "model",
    "fit.partial",
    "shards",
    "evaluation",
    "diagnosis.json",
    "discovery.json",
    "assumptions.json",
    "ASSUMPTIONS.md",
    "results.jsonl",
    "report.html",
    "stats.jsonl",
    "jobs",
    "tensorboard",
    "run.json",
    "config.yaml",
)
"""Everything that a run writes; ``--overwrite`` removes exactly this."""


MODEL = ("model", "fit.partial", "assumptions.json", "ASSUMPTIONS.md", "run.json")
"""What stays when only the plan and what follows it start over; ``run.json`` says on which images the model was fitted."""


class RunDirectory:
    """One output directory.

    Args:
        path: created if it does not exist.
        recipe: the resolved configuration.
        overwrite: remove an earlier run's products first.
        keep_model: but not its model, where all that it was fitted with is the same.

    Raises:
        UsageError: the directory holds the run of another configuration, or something that is not a directory.
        CfaugError: it cannot be written.
    """

    def __init__(self, path: str | Path, recipe: Recipe, overwrite: bool = False, keep_model: bool = False) -> None:
        self.path = Path(path)
        self.recipe = recipe
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out expects a directory, but {self.path} is a file; choose another place")
        found = [name for name in PRODUCTS if (self.path / name).exists()]
        if found and not self._ours():
            # not even with --overwrite: a folder called "model" or "shards" may well be somebody else's
            raise UsageError(
                f"{self.path} holds {found[0]}, but no config.yaml of ours says that it is a run's; choose another --out, or remove it yourself"
            )
        self._kept = overwrite and keep_model and self._same_model()
        if overwrite:
            self._clear(MODEL if self._kept else ())
        elif set(found) & set(MADE):
            self._check_owner()
        # diagnose, discover, edit the graph, run: one directory for all of it
        self._adopted = bool(found) and not overwrite and not set(found) & set(MADE) and not self._same()

    def claim(self, data: str) -> None:
        """Write ``config.yaml`` and ``run.json``: from now on the directory is this recipe's, on these data.

        Args:
            data: digest of the attribute tables and pixels.

        Raises:
            UsageError: the directory holds a run on other data (a folder of the same name, or one that has changed).
        """
        owner = self.read_json("run.json")
        made = [name for name in MADE if (self.path / name).exists()]
        if made and not (isinstance(owner, dict) and "data" in owner):
            raise UsageError(
                f"{self.path} holds {made[0]}, but run.json no longer says of which images; restore run.json, or --overwrite to start over"
            )
        other = isinstance(owner, dict) and owner.get("data", data) != data
        if other and self._kept:  # the model is of other images: it goes as well
            self._clear(())
            owner, made, other = None, [], False
        if other and made:
            raise UsageError(
                f"{self.path} holds a run on other images or attributes (data {str(owner['data'])[:12]}, now {data[:12]}); "
                "choose another --out, or --overwrite to start over"
            )

        fresh = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CfaugError(
                f"cannot create the output directory {self.path}: {error.strerror}; choose another --out"
            ) from None
        text = dump_yaml(self.recipe.to_dict())
        path = self.path / "config.yaml"
        renewed = self._adopted or (other and not made)
        if renewed:
            for name in ("diagnosis.json", *(["discovery.json"] if other else [])):  # of another graph; of other images
                (self.path / name).unlink(missing_ok=True)
        # more seeds or methods than before, another destination
        if renewed or not path.exists() or _kept(load_recipe(path)) != _kept(self.recipe):
            try:
                self.write("config.yaml", text)
            except CfaugError:
                if fresh:
                    self.path.rmdir()
                raise
        if renewed or not isinstance(owner, dict) or owner.get("fingerprint") != self.recipe.fingerprint():
            self.write_json(
                "run.json",
                {
                    "fingerprint": self.recipe.fingerprint(),
                    "data": data,
                    "seed": self.recipe.seed,
                    "versions": versions(),
                    "seconds": {},
                },
            )

    def _ours(self) -> bool:
        run = self.read_json("run.json")
        if isinstance(run, dict) and "fingerprint" in run:  # perhaps of a version whose recipes we cannot read
            return (self.path / "config.yaml").exists()
        try:
            load_recipe(self.path / "config.yaml")
        except UsageError:
            return False
        return True

    def _same(self) -> bool:
        """Whether the directory's configuration is ours in all that matters."""
        try:
            return load_recipe(self.path / "config.yaml").fingerprint() == self.recipe.fingerprint()
        except UsageError:
            return False

    def _check_owner(self) -> None:
        try:
            owner = load_recipe(self.path / "config.yaml")
        except UsageError as error:
            raise UsageError(
                f"{self.path}/config.yaml is not a configuration that this version can read ({error}); use another --out or --overwrite"
            ) from None
        if owner.fingerprint() != self.recipe.fingerprint():
            changed = _difference(owner.identity(), self.recipe.identity())
            raise UsageError(
                f"{self.path} holds a run of another configuration ({changed}); choose another --out, or --overwrite to start over"
            )

    def _same_model(self) -> bool:
        try:
            return load_recipe(self.path / "config.yaml").model_identity() == self.recipe.model_identity()
        except UsageError:
            return False

    def _clear(self, keep: Collection[str]) -> None:
        """Remove what a run has written, `keep` excepted; UsageError while another process is writing shards here."""
        if (self.path / "shards").is_dir():
            with open_destination(self.path).session(overwrite=True):
                pass
        ranks = [path.name for path in self.path.glob("stats-*.jsonl")]
        for name in (*PRODUCTS, *ranks):
            product = self.path / name
            if name in keep:
                continue
            if product.is_dir():
                shutil.rmtree(product)
            elif product.exists():
                product.unlink()

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


def _kept(recipe: Recipe) -> tuple[Any, ...]:
    """What may change from command to command, and is known from then on."""
    return recipe.train, recipe.generate.destination


def versions() -> dict[str, str]:
    """Versions that can change a byte."""
    names = ("torch", "torchvision", "diffusers", "numpy", "pandas", "zuko", "webdataset", "Pillow")
    return {
        "cfaug": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def _difference(first: dict[str, Any], second: dict[str, Any], where: str = "") -> str:
    for key in first:
        if isinstance(first[key], dict) and isinstance(second[key], dict) and first[key].keys() == second[key].keys():
            found = _difference(first[key], second[key], f"{where}{key}.")
            if found:
                return found
        elif first[key] != second[key]:
            return f"{where}{key} was {first[key]!r}, now {second[key]!r}"
    return ""
