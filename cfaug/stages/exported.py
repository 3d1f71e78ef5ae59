"""``cfaug export``: the edits that a run's plan wants, as a table and files for a tool of the user's own.

    DIR/edits/edits.jsonl       one row per wanted edit        sources/   PNGs at the working size        masks/   white is the object

The tool writes its images under the table's ``file_name``; ``cfaug import`` makes shards of them (:mod:`cfaug.stages.imported`). The
folder is not one of the run's products: ``--overwrite`` must not remove images that somebody has edited.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from cfaug.causal import SCM
from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.data.files import expand, replace_file
from cfaug.data.images import pixel_digest, to_pil
from cfaug.decode.editors.words import Words
from cfaug.errors import CfaugError, UsageError
from cfaug.offline import PlanRow
from cfaug.offline.environment import stored_image
from cfaug.offline.make_shard import plain_rows
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.verification import open_planned

FOLDER, TABLE = "edits", "edits.jsonl"
FORMATS = (".jsonl", ".csv")
COLUMNS = (
    "key", "source_key", "source", "source_digest", "mask", "do", "prompt", "seed", "attributes", "file_name",
)  # fmt: skip
_BATCH = 1000  # rows whose attributes are computed at a time


@dataclass(frozen=True)
class Exported:
    """What was written: the ``table``, how many ``edits`` it wants, and of how many ``sources``."""

    table: Path
    edits: int
    sources: int

    def __str__(self) -> str:
        return f"{self.edits} edits of {self.sources} sources wanted in {self.table}"


def export_edits(directory: str | Path, table: str | Path | None = None, progress: bool = False) -> Exported:
    """Write the wanted edits of the run in ``directory``: every row of its plan but the null interventions.

    Args:
        directory: a run with a plan.
        table: a file of JSON lines or CSV, by its ending; ``edits/edits.jsonl`` in the run unless given.
        progress: show a bar.

    Raises:
        UsageError: not a run with a plan, other images than the run's, or a table of a different format.
    """
    run, recipe, inputs, plan = open_planned(directory, progress)
    place = run / FOLDER / TABLE if table is None else expand(table)
    if place.suffix not in FORMATS:
        raise UsageError(
            f"--edits: expected a file name that ends in {' or '.join(FORMATS)}, got {place.name!r}; rename it"
        )
    wanted = [row for row in plan if not row.do.is_null]
    scm = SCM.load(run / "model") if (run / "model" / "model.json").exists() else None
    try:
        files = _write_sources(inputs.sources, {row.source_key for row in wanted}, place.parent, progress)
        rows = list(_rows(recipe, inputs, scm, wanted, files))
        replace_file(place, _text(rows, place.suffix).encode())
    except OSError as error:
        raise CfaugError(f"cannot write {place}: {error.strerror}; free some space and run it again") from None
    return Exported(place, len(rows), len(files))


def prompt_of(recipe: Recipe, inputs: Inputs, attributes: Mapping[str, Any], changed: Collection[str]) -> str:
    """What to ask an editor for, in the words of ``decoder.editor``; empty where the recipe has none."""
    editor = recipe.decoder.editor
    if editor.template is None and not editor.words:
        return ""
    return Words(inputs.schema, inputs.graph.parents("image"), editor.template, editor.words).prompt(
        attributes, changed
    )


def source_digest(dataset: AttributeDataset, i: int) -> str:
    """The digest of a source as the records have it: before it was brought to a working size."""
    return pixel_digest(stored_image(dataset, i))


def _write_sources(dataset: AttributeDataset, keys: set[str], place: Path, progress: bool) -> dict[str, dict[str, str]]:
    """Write each source, and its mask where it has one; source key -> the table's cells about it."""
    for name in ("sources", "masks"):
        (place / name).mkdir(parents=True, exist_ok=True)
    found = {}
    rows = [i for i in range(len(dataset)) if dataset.key(i) in keys]
    for i in tqdm(rows, desc="export", unit="img", disable=not progress, delay=2):
        # keys may hold slashes and differ in case alone
        name = f"{i:06d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', dataset.key(i))[-80:]}.png"
        to_pil(dataset.image(i)).save(place / "sources" / name)
        mask = dataset.mask(i)
        if mask is not None:
            Image.fromarray(mask).save(place / "masks" / name)
        cells = {"source": f"sources/{name}", "mask": "" if mask is None else f"masks/{name}"}
        found[dataset.key(i)] = {**cells, "source_digest": source_digest(dataset, i)}
    return found


def _rows(
    recipe: Recipe, inputs: Inputs, scm: SCM | None, wanted: Sequence[PlanRow], files: Mapping[str, Mapping[str, str]]
) -> Iterable[dict[str, Any]]:
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        for row, attributes in zip(part, plain_rows(_attributes(inputs, scm, part)), strict=True):
            cells = {
                "key": row.key, "source_key": row.source_key, **files[row.source_key], "do": dict(row.do.assignments),
                "prompt": prompt_of(recipe, inputs, attributes, row.do.names), "seed": row.seed, "attributes": attributes,
                "file_name": f"{row.key}.png",
            }  # fmt: skip
            yield {name: cells[name] for name in COLUMNS}


def _attributes(inputs: Inputs, scm: SCM | None, rows: Sequence[PlanRow]) -> pd.DataFrame:
    """The attributes that the edited images are to have: by the SCM, without one those of the sources with do(...) laid over them."""
    factual = inputs.sources.table.loc[[row.source_key for row in rows]].set_axis([row.key for row in rows])
    if scm is not None:
        return scm.act([row.do for row in rows]).predict(scm.abduct(factual, [row.seed for row in rows]))
    found = factual.astype(object)
    for name in {name for row in rows for name in row.do.names}:
        found[name] = [row.do.assignments.get(name, own) for row, own in zip(rows, found[name], strict=True)]
    return inputs.schema.canonical(found)


def _text(rows: Sequence[Mapping[str, Any]], suffix: str) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **{name: json.dumps(row[name]) for name in ("do", "attributes")}} for row in rows)
    return text.getvalue()
