"""A fitted SCM on disk: scm.json and scm.safetensors. No pickle.

The digest covers the JSON and every array (name, type, shape, bytes). Loading recomputes it, so that a file that was cut,
edited or mixed with one of a different model is refused. It promises integrity, not authenticity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.causal.fitted import FittedSCM
from cfaug.causal.graph import CausalGraph
from cfaug.causal.marginals import Marginal
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.causal.mechanisms.registry import mechanism_named
from cfaug.causal.noise import Districts
from cfaug.data.files import replace_file
from cfaug.data.schema import Schema
from cfaug.errors import CfaugError, ShardError, UsageError, one_line

FORMAT = 2
Arrays = Mapping[str, npt.NDArray[Any]]


def content(scm: FittedSCM) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """(JSON, arrays) of a fitted SCM. Arrays go by an attribute's place in the order, for its name may be any text."""
    mechanisms: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for k, (name, mechanism) in enumerate(scm.mechanisms.items()):
        state, found = mechanism.state()
        mechanisms[name] = {"kind": mechanism.kind, "rows": scm.rows[name], "state": state}
        arrays |= {f"mechanism {k}/{key}": a for key, a in found.items()}
        arrays[f"marginal {k}"] = scm.marginals[name].numbers
        if name in scm.districts:
            arrays[f"noise {k}"] = scm.districts.bank[name]
    return {"graph": scm.graph.to_json(), "schema": scm.schema.to_json(), "mechanisms": mechanisms}, arrays


def read(directory: Path, own: Mapping[str, Mechanism]) -> FittedSCM:
    """The fitted SCM that ``save`` wrote; ``own`` are the mechanisms whose code the user gives.

    Raises ShardError for anything else, UsageError when ``own`` are not the saved ones.
    """
    data, arrays = load(directory)
    try:
        graph, schema = CausalGraph.from_json(data["graph"]), Schema.from_json(data["schema"])
        kinds = {name: str(data["mechanisms"][name]["kind"]) for name in graph.attribute_order(schema)}
        states = {name: data["mechanisms"][name]["state"] for name in kinds}
        rows = {name: int(data["mechanisms"][name]["rows"]) for name in kinds}
        marginals = {name: Marginal(schema[name], arrays[f"marginal {k}"]) for k, name in enumerate(kinds)}
        bank = {name: arrays[f"noise {k}"] for k, name in enumerate(kinds) if f"noise {k}" in arrays}
        mechanisms: dict[str, Mechanism] = {}
        for k, (name, kind) in enumerate(kinds.items()):
            start = f"mechanism {k}/"
            found = {key.removeprefix(start): a for key, a in arrays.items() if key.startswith(start)}
            if kind != "function":
                parents = graph.parents(name) if name in graph else ()
                mechanisms[name] = mechanism_named(kind, schema, name, parents).restore(states[name], found)
    except (KeyError, TypeError, ValueError, CfaugError) as error:
        raise ShardError(f"{directory}: not an SCM this version can read ({error}); fit the model again") from error
    functions = [name for name, kind in kinds.items() if kind == "function"]
    if sorted(functions) != sorted(own):
        raise UsageError(
            f"{directory}: expected mechanisms of your own for {', '.join(functions) or 'no attribute'}, whose code is not "
            f"saved, got {', '.join(own) or 'none'}; pass mechanisms={{name: FunctionMechanism}} to load"
        )
    for name in functions:
        mechanisms[name] = own[name].restore(states[name], {})
    ordered = {name: mechanisms[name] for name in kinds}
    return FittedSCM(graph, schema, ordered, marginals, Districts(graph.districts(), bank), rows)


def digest(data: Mapping[str, Any], arrays: Arrays) -> str:
    """sha256 (hex) of the canonical JSON and of every array in order of its name."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    h = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        a = np.asarray(arrays[name], order="C")
        h.update(f"\n{name} {a.dtype.str} {a.shape}\n".encode() + a.tobytes())
    return h.hexdigest()


def save(directory: Path, data: Mapping[str, Any], arrays: Arrays) -> None:
    """Write both files, each complete or not at all."""
    from safetensors.numpy import save as pack

    directory.mkdir(parents=True, exist_ok=True)
    whole = {"format": FORMAT, "digest": digest(data, arrays), **data}
    packed = {k: np.asarray(v, order="C") for k, v in arrays.items()}  # ascontiguousarray would make () into (1,)
    replace_file(directory / "scm.safetensors", pack(packed))
    replace_file(directory / "scm.json", (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())


def load(directory: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """(JSON, arrays) as they were saved; ShardError for anything else."""
    path = directory / "scm.json"
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        form, expected = data.pop("format", None), data.pop("digest", None)
    except FileNotFoundError as error:
        raise ShardError(
            f"{path}: expected a model directory that save() has written, got no such file; fit the model, or correct the path"
        ) from error
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: corrupt ({one_line(error, 120)}); fit the model again") from error
    if form != FORMAT:
        raise ShardError(f"{path}: expected SCM format {FORMAT}, got {form!r}; fit the model again")
    arrays: dict[str, npt.NDArray[Any]] = {}
    packed = directory / "scm.safetensors"
    if packed.is_file():
        from safetensors import SafetensorError
        from safetensors.numpy import load as unpack

        try:
            arrays = dict(unpack(packed.read_bytes()))
        except (SafetensorError, OSError, ValueError) as error:
            raise ShardError(f"{packed}: corrupt ({one_line(error, 120)}); fit the model again") from error
    got = digest(data, arrays)
    if got != expected:
        raise ShardError(f"{path}: expected digest {str(expected)[:12]}, got {got[:12]}; fit the model again")
    return data, arrays
