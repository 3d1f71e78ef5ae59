"""The gate of a run: its readers are trained, its thresholds measured on real images, and all of it is kept in ``gate/``.

    false rejections of all criteria together  <=  gate.false_rejections,      shared equally among the questions that one image is asked

What the gate does not judge, and why, is part of its description and stands in the report.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cfaug.config import Recipe
from cfaug.data.files import replace_file
from cfaug.decode import CounterfactualModel, save_decoder
from cfaug.decode.layered.mask_gate import ObjectFound
from cfaug.decode.text_image import TextImageModel
from cfaug.errors import UsageError, near
from cfaug.offline.criteria import NoTrace, Original, Plausible, Shown, Unchanged
from cfaug.offline.gate import CriteriaGate, Criterion
from cfaug.offline.reviewed import reviewed
from cfaug.stages.attribute_classifiers import feature_store
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.gate_readers import (
    Embedding,
    HeadReader,
    Learned,
    NetReader,
    Reader,
    RealImages,
    blank_net,
    fold_count,
    learn_readers,
)
from cfaug.stages.gate_text import MatchesText, MovesAsText, check_texts, text_readers
from cfaug.stages.gate_thresholds import asked_of, exchanged, measured, regions_of
from cfaug.stages.image_mechanism import needs_masks
from cfaug.train.features import FeatureStore

log = logging.getLogger(__name__)


def gate_is_on(recipe: Recipe) -> bool:
    """Whether the recipe's counterfactuals pass the criteria: where it says so, else for layers, functions and pipelines."""
    kinds = {recipe.decoder.kind, *recipe.decoder.mechanisms.values()}
    return bool(kinds & {"layered", "functional", "pretrained"}) if recipe.gate.enabled is None else recipe.gate.enabled


def check_gate(recipe: Recipe, inputs: Inputs) -> None:
    """UsageError for a care attribute or a region that cannot be."""
    schema, graph = inputs.schema, inputs.graph
    changed = recipe.plan.attributes or list(schema.spurious)
    for name in recipe.gate.care:
        if name not in schema.names:
            raise UsageError(
                f"gate.care: expected attributes of the data, got {name!r}; {near(name, schema.names)}, or name it in attributes.kinds"
            )
        cause = next((one for one in changed if name in graph and name in graph.descendants(one)), None)
        if name in changed or cause is not None:
            why = "is intervened on" if name in changed else f"is a descendant of {cause}, which is intervened on"
            raise UsageError(f"gate.care: expected attributes that must not change, but {name!r} {why}; remove it")
        if schema[name].kind != "categorical":
            raise UsageError(
                f"gate.care: expected attributes with a reader, but {name!r} is {schema[name].kind}, and only categories are read; bin its column"
            )
    check_texts(recipe, schema)
    known = {name: region for region, names in recipe.gate.regions.items() for name in names}
    for name in known:
        if name not in changed:
            raise UsageError(
                f"gate.regions: expected attributes that are intervened on, got {name!r}; {near(name, changed)}"
            )


def make_gate(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, out: Path, progress: bool = False
) -> CriteriaGate | None:
    """The gate of a recipe; None where it has none. It is read from ``out/gate``, or made and written there.

    Raises:
        UsageError: what :func:`check_gate` refuses.
    """
    first: tuple[Criterion, ...] = (ObjectFound(),) if needs_masks(recipe) else ()
    said = ""
    if recipe.gate.decisions is not None:
        decisions = reviewed(recipe.gate.decisions, inputs.digest)
        first, said = (*first, decisions), hashlib.sha256("".join(sorted(decisions.rejected)).encode()).hexdigest()
    if not gate_is_on(recipe):
        return (
            CriteriaGate(first, f"object found {said}".rstrip(), recipe.gate.retries if said else 0) if first else None
        )
    check_gate(recipe, inputs)
    store = feature_store(recipe, inputs, out / "features", progress) if recipe.train.weights else None
    identity = {
        "format": 2,
        "data": inputs.digest, "gate": recipe.identity()["gate"], "text": recipe.gate.clip and TextImageModel(recipe.gate.clip).digest, "seed": recipe.seed, "model": model.digest,
        "net": "small_cnn" if store is None else store.digest,
    }  # fmt: skip
    place = out / "gate"
    if (found := _read(place, identity)) is not None:
        description, arrays = found
        learned = _rebuilt(recipe, inputs, description, arrays, store)
    else:
        asked, silent = asked_of(recipe, inputs)
        learned = learn_readers(recipe, inputs, list(asked), store, progress)
        description = {
            "identity": identity,
            "silent": silent,
            "blind": list(learned.blind),
            **measured(recipe, inputs, model, asked, learned),
        }
        arrays = _arrays(learned)
        _write(place, description, arrays)
        for line in silent:
            log.warning("gate: %s", line)
    criteria = _criteria(recipe, inputs, model, description, learned)
    digest = save_decoder.digest(description, arrays)
    whole = hashlib.sha256((digest + said).encode()).hexdigest() if said else digest
    return CriteriaGate((*first, *criteria), whole, recipe.gate.retries)


def _criteria(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, description: Mapping[str, Any], learned: Learned
) -> list[Criterion]:
    wanted, schema = set(recipe.gate.criteria), inputs.schema
    found: list[Criterion] = []
    regions, unchanged = regions_of(recipe, model), None
    if "unchanged" in wanted and regions:
        margin = int(np.ceil(recipe.decoder.composite.feather)) + 1
        unchanged = Unchanged(regions, margin, description["outside"])
        found.append(unchanged)
    # masks that were made may have lost half of the object, and only a reader sees that
    proof = unchanged if recipe.decoder.mask.get("from", "given") == "given" else None
    for name, reader in learned.readers.items():
        for intervened in (True, False):
            if ("shown" if intervened else "kept") not in wanted or (intervened and name == inputs.target):
                continue
            place = "object" if name == inputs.target else regions.get(name)
            found.append(
                Shown(name, schema[name].categories, reader, description["thresholds"][name], intervened, place, proof)
            )
    if "text" in wanted:
        for name, text in text_readers(recipe, schema, list(description["texts"])).items():
            found.append(MatchesText(name, schema[name].categories, text, description["texts"][name], True))
    if "direction" in wanted:
        for name, text in text_readers(recipe, schema, list(description["directions"])).items():
            found.append(MovesAsText(name, schema[name].categories, text, description["directions"][name]))
    if "trace" in wanted and description["trace"] is not None:
        found.append(NoTrace(frozenset(exchanged(recipe)), description["trace"]))
    if "near" in wanted and learned.real is not None:
        found.append(Plausible(learned.real.distance, description["near"]))
    if "copy" in wanted and learned.real is not None:
        found.append(Original(learned.real.nearest, description["copy"]))
    return found


# -- disk --------------------------------------------------------------------------------------------------------------


def _arrays(learned: Learned) -> dict[str, Tensor]:
    real = {} if learned.real is None else learned.real.arrays()
    found = {f"real.{name}": value for name, value in real.items()}
    for attribute, reader in learned.readers.items():
        found.update({f"read.{attribute}.{name}": value for name, value in reader.arrays().items()})
    return found


def _write(place: Path, description: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save as serialise

    place.mkdir(parents=True, exist_ok=True)
    replace_file(place / "gate.safetensors", serialise({name: one.contiguous() for name, one in arrays.items()}))
    content = {**description, "digest": save_decoder.digest(description, arrays)}
    replace_file(place / "gate.json", json.dumps(content, indent=1, sort_keys=True).encode())


def _read(place: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What :func:`_write` wrote for this identity; None where it is not there, damaged or of something else."""
    from safetensors.torch import load_file

    if not (place / "gate.json").exists():
        return None
    try:
        description = json.loads((place / "gate.json").read_text(encoding="utf-8"))
        digest, arrays = description.pop("digest"), load_file(place / "gate.safetensors")
        whole = save_decoder.digest(description, arrays) == digest
    except Exception as error:  # JSON and safetensors each raise their own
        log.warning("%s cannot be read (%s) and is made again", place, " ".join(str(error).split())[:120])
        return None
    if not whole:
        log.warning("%s is damaged and made again", place)
    same = json.dumps(description.get("identity"), sort_keys=True) == json.dumps(identity, sort_keys=True)
    return (description, arrays) if whole and same else None


def _rebuilt(
    recipe: Recipe,
    inputs: Inputs,
    description: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    store: FeatureStore | None,
) -> Learned:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}

    readers: dict[str, Reader] = {}
    embedding = None if store is None else Embedding(store.model)
    for name in description["thresholds"]:
        own = part(f"read.{name}.")
        if embedding is not None:
            readers[name] = HeadReader(embedding, own["weight"], own["bias"])
            continue
        nets = []
        for fold in range(fold_count(recipe)):
            net = blank_net(inputs, name, name in description["blind"])
            mine = f"{fold}."
            net.load_state_dict({key[len(mine) :]: value for key, value in own.items() if key.startswith(mine)})
            nets.append(net.requires_grad_(False))
        readers[name] = NetReader(nets)
    if embedding is None and inputs.target in readers:
        embedding = Embedding(readers[inputs.target].nets[0])  # type: ignore[attr-defined]
    if embedding is None:
        return Learned(readers, {}, None)
    keys = [str(key) for key in inputs.train.table.index]
    return Learned(readers, {}, RealImages(embedding, **part("real."), keys=keys))
