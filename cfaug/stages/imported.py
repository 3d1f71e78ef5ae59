"""``cfaug import``: a folder of edited images and its table become the shards of a run, through the same stage as any other images.

    EDITS/edits.jsonl or edits.csv       at least key (of a row of the plan) and file_name (below EDITS)

Everything is checked before anything of the run is touched. Where the table says whose image a row is, and what was asked for
(``source_key``, ``source_digest``, ``do``, ``seed``), that is compared with the plan: keys alone are the same in every plan.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from cfaug.causal import SCM
from cfaug.config import Recipe, load_recipe
from cfaug.data.files import expand
from cfaug.data.images import decode
from cfaug.data.source_types import SOURCE_TYPES, TRAINED, strongest
from cfaug.decode import CounterfactualModel, EditedFile, ImportedDecoder
from cfaug.decode.imported import read_file
from cfaug.errors import DataError, UsageError, near, one_line
from cfaug.offline import GenerateReport, Plan, PlanRow
from cfaug.recipe_file import dump_yaml
from cfaug.stages.checked_inputs import Inputs, open_inputs
from cfaug.stages.exported import source_digest
from cfaug.stages.generation import generate
from cfaug.stages.masks import with_masks
from cfaug.stages.recipe_checks import fit_scm
from cfaug.stages.run import Run
from cfaug.stages.run_directory import RunDirectory
from cfaug.stages.run_lock import run_lock
from cfaug.stages.verification import PLANNED, refuse_other_data, run_with

log = logging.getLogger(__name__)

TABLES = ("edits.jsonl", "edits.csv")
_STRETCHED = 0.02  # a difference of the ratios of width to height that is no rounding

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Imported:
    """What was imported: ``images``, of which ``resized``; rows of the plan that were ``left_out``; what ``generate`` said."""

    images: int
    resized: int
    left_out: int
    report: GenerateReport

    def __str__(self) -> str:
        done = self.report
        state = f"{done.written} written now" if done.written else "all there before, nothing to do"
        resized = f" ({self.resized} resized)" if self.resized else ""
        return f"{self.images} edited images imported{resized}, {self.left_out} rows of the plan left out\n{done.shards} shards in {done.directory}: {state}"


def import_edits(
    directory: str | Path,
    edits: str | Path,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Imported:
    """Make the shards of the run in ``directory`` of the images in the folder ``edits``.

    Args:
        directory: a run with a plan; its configuration gets ``decoder.kind: imported``.
        edits: the folder with its table.
        overrides: of settings that change no image (``--generate.workers=4``).
        overwrite: drop the model, the shards and what came of them first.
        progress: show bars.

    Raises:
        UsageError: not a run with a plan, a folder without a table, or a run that holds other images.
        DataError: a table or an image that is not what the plan asks for; each in one line with its count.
    """
    place, folder = run_with(directory, PLANNED), expand(edits)
    recipe = load_recipe(place / "config.yaml", overrides)
    RunDirectory(place, recipe)  # refuses a setting that would make other images
    recipe = dataclasses.replace(recipe, decoder=dataclasses.replace(recipe.decoder, kind="imported"))
    table = _read_table(folder)
    with run_lock(place):
        fitted = (place / "model" / "model.json").exists()
        inputs = with_masks(recipe, open_inputs(recipe, progress, fitted), place / "masks")
        refuse_other_data(place, inputs.digest)
        plan = Plan.load(place / "plan")
        rows = _checked(table, plan, inputs, folder)
        files, sizes = _read_images(table, folder, progress)
        scm = SCM.load(place / "model") if fitted else fit_scm(recipe, inputs)
        found = {(rows[key].source_key, rows[key].seed): file for key, file in files.items()}
        parents = inputs.graph.parents("image")
        model = CounterfactualModel(scm, ImportedDecoder(scm.schema, parents, folder, found, _source_type(table)))
        lacking = _lacking(plan, set(files))
        _refuse_other_images(place, model, overwrite)
        run = _claimed(place, recipe, inputs, model, overwrite, progress)
        if lacking:
            log.warning(
                "%d rows of the plan have no edited image and are left out (first: %s)", len(lacking), lacking[0]
            )
        resized = _say_sizes(sizes, inputs.train.image(0).shape[:2])
        return Imported(len(files), resized, len(lacking), generate(run))


# -- the table -----------------------------------------------------------------------------------------------------------


def _read_table(folder: Path) -> Rows:
    there = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(there) != 1:
        got = "both" if there else "neither" if folder.is_dir() else "no such folder"
        raise UsageError(
            f"{folder}: expected a folder of edited images with one table, {' or '.join(TABLES)}, got {got}; `cfaug export` writes one"
        )
    (path,) = there
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: expected rows of {path.suffix[1:]}, got {one_line(error, 160)}; correct the table"
        ) from None
    wrong = [
        k
        for k, row in enumerate(rows)
        if not (
            isinstance(row, dict) and all(isinstance(row.get(name), str) and row[name] for name in ("key", "file_name"))
        )
    ]
    _refuse(path, wrong, "rows with key and file_name", "without", "add them", lambda k: f"row {k + 1}")
    if not rows:
        raise DataError(f"{path}: expected rows, got none; name the edited images")
    return rows


def _refuse(place: Path, wrong: Sequence[Any], expected: str, got: str, cure: str, said: Any = str) -> None:
    """DataError with the count and the first of what is ``wrong``."""
    if wrong:
        raise DataError(f"{place}: expected {expected}, got {len(wrong)} {got} (first: {said(wrong[0])}); {cure}")


def _checked(table: Rows, plan: Plan, inputs: Inputs, folder: Path) -> dict[str, PlanRow]:
    """Key -> its row of the plan. DataError for a row that is not of this plan, or whose source is another one or held out."""
    keys = [row["key"] for row in table]
    seen: set[str] = set()
    twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    _refuse(folder, twice, "each key once", "twice", "remove one of the rows")
    planned = {row.key: row for row in plan if row.key in seen}
    strange = [key for key in keys if key not in planned]
    _refuse(
        folder,
        strange,
        "keys of the plan",
        "others",
        "export again, or import into the run that they were exported from",
    )
    null = [key for key in keys if planned[key].do.is_null]
    _refuse(
        folder, null, "keys of interventions", "of null interventions, which are the sources themselves", "remove them"
    )
    place = {inputs.train.key(i): i for i in range(len(inputs.train))}
    digests: dict[str, str] = {}
    swapped = []
    for row in table:
        key = planned[row["key"]].source_key
        if key not in digests:
            digests[key] = source_digest(inputs.train, place[key]) if row.get("source_digest") else ""
        told = row.get("source_digest") or ""
        if (told and told != digests[key]) or (row.get("source_key") or key) != key:
            swapped.append(row)
    if swapped:
        _refuse_held_out(swapped, inputs, folder)
    _refuse(
        folder, swapped, "the sources of the plan", "rows of other sources", "edit the sources that were exported", lambda row: row["key"]
    )  # fmt: skip
    other = [row["key"] for row in table if _asked(row) != _asked(row, planned[row["key"]])]
    _refuse(folder, other, "the do and seed of the plan", "rows of a different plan", "export again")
    if len({(row.source_key, row.seed) for row in planned.values()}) < len(planned):
        raise DataError(
            f"{folder}: expected a plan whose rows of a source have seeds that differ, got equal ones; plan again"
        )
    return planned


def _refuse_held_out(rows: Rows, inputs: Inputs, folder: Path) -> None:
    held = []
    for dataset in (inputs.val, inputs.test):
        keys = {dataset.key(i) for i in range(len(dataset))}
        digests = {source_digest(dataset, i) for i in range(len(dataset))}
        held += [
            f"{row['key']}, whose source is of the {dataset.split} split"
            for row in rows
            if row.get("source_key") in keys or row.get("source_digest") in digests
        ]
    _refuse(
        folder, held, "sources of the train split", "held-out ones", "remove the rows, they would leak into training"
    )


def _asked(row: Mapping[str, Any], planned: PlanRow | None = None) -> tuple[Any, ...]:
    """What a row says of do and seed, or what the plan says of as much of it."""
    do, seed = row.get("do"), row.get("seed")
    if planned is not None:
        return (dict(planned.do.assignments) if do else None, planned.seed if seed not in (None, "") else None)
    try:
        return ((json.loads(do) if isinstance(do, str) else do) or None, int(seed) if seed not in (None, "") else None)
    except (TypeError, ValueError):
        return ("unreadable",)


def _source_type(table: Rows) -> str:
    """The strongest digital source type that the rows tell; trained media where one tells none."""
    told = {str(row.get("digital_source_type") or TRAINED).rpartition("/")[2] for row in table}
    if unknown := sorted(told - set(SOURCE_TYPES)):
        raise DataError(
            f"digital_source_type: expected terms of IPTC's vocabulary, got {unknown[0]!r}; {near(unknown[0], SOURCE_TYPES)}"
        )
    return strongest(told)


# -- the images ----------------------------------------------------------------------------------------------------------


def _read_images(table: Rows, folder: Path, progress: bool) -> tuple[dict[str, EditedFile], dict[str, tuple[int, int]]]:
    """Key -> its file, and file -> (height, width); DataError for files that are outside, missing or no images."""
    outside = [row["file_name"] for row in table if _leads_out(row["file_name"])]
    _refuse(folder, outside, "file names inside the folder", "that lead out of it", "move the images into it")
    missing = [row["file_name"] for row in table if not (folder / row["file_name"]).is_file()]
    _refuse(folder, missing, "an image for each row", "missing", "add them, or remove their rows from the table")
    files, sizes, damaged = {}, {}, []
    for row in tqdm(table, desc="check edits", unit="img", disable=not progress, delay=2):
        name = row["file_name"]
        content = read_file(folder / name)
        try:
            sizes[name] = decode(content, name).pixels.shape[:2]
        except DataError as error:
            damaged.append(one_line(error, 160))
            continue
        files[row["key"]] = EditedFile(name, hashlib.sha256(content).hexdigest())
    _refuse(
        folder,
        damaged,
        "images in PNG, JPEG or WebP",
        "that cannot be decoded",
        "edit them again, or remove their rows",
    )
    return files, sizes


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _lacking(plan: Plan, keys: set[str]) -> list[str]:
    """The wanted edits that have no image; DataError where a shard would have no image at all."""
    lacking: list[str] = []
    for shard in plan.shards():
        rows = plan.rows_of(shard)
        absent = [row.key for row in rows if not row.do.is_null and row.key not in keys]
        if len(absent) == len(rows):
            raise DataError(
                f"{plan.shard_name(shard)}: expected an edited image for at least one row of each shard, got none; edit one of its rows (first: "
                f"{absent[0]}), or plan larger shards"
            )
        lacking += absent
    return lacking


def _say_sizes(sizes: Mapping[str, tuple[int, int]], size: tuple[int, int]) -> int:
    others = [name for name, own in sizes.items() if own != size]
    if others:
        stretched = sum(abs(h * size[1] / (w * size[0]) - 1) > _STRETCHED for h, w in (sizes[name] for name in others))
        also = f", {stretched} of them stretched" if stretched else ""
        height, width = sizes[others[0]]
        log.warning(
            "%d edited images are resized to %dx%d%s (first: %s, %dx%d)", len(others), size[1], size[0], also, others[0], width, height
        )  # fmt: skip
    return len(others)


# -- the run -------------------------------------------------------------------------------------------------------------


def _refuse_other_images(place: Path, model: CounterfactualModel, overwrite: bool) -> None:
    try:
        digest = json.loads((place / "model" / "model.json").read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if digest != model.digest and not overwrite:
        raise UsageError(
            f"{place} holds the model of other images; expected a run with a plan alone, or the same edits; import into a different run, or "
            "--overwrite to drop its model, its shards and what came of them"
        )


def _claimed(
    place: Path, recipe: Recipe, inputs: Inputs, model: CounterfactualModel, overwrite: bool, progress: bool
) -> Run:
    """The run under its new configuration, with the model of the imported images in it."""
    before = load_recipe(place / "config.yaml")
    if overwrite:
        RunDirectory(place, before).drop_images()
    if before.decoder.kind != recipe.decoder.kind:
        changed = dataclasses.replace(before, decoder=recipe.decoder)
        RunDirectory(place, before).write("config.yaml", dump_yaml(changed.to_dict()))
    directory = RunDirectory(place, recipe)
    directory.claim(inputs.digest)
    if not (place / "model" / "model.json").exists():
        shutil.rmtree(place / "model", ignore_errors=True)
    model.save(place / "model")  # the folder may have moved
    return Run(recipe, inputs, directory, overwrite=overwrite, progress=progress)
