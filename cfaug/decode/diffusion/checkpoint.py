"""A training that can be killed: everything the next step depends on, in one file that is whole or not there.

    DIR/training.safetensors    weights, their average, the best average, moments of the optimiser, state of the generator;
                                in its header, as JSON: step, seconds, loss, scores, settings and a digest of all tensors

One file, because two of them could come from two different steps. No pickle: nothing in a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cfaug.data.files import PARTIAL, replace_file
from cfaug.errors import CfaugError, ShardError, UsageError, one_line, shown

_FILE = "training.safetensors"
_FORMAT = 1


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        module: the network that is trained.
        average: a copy of it with the exponential average of its weights.
        optimiser: with its moments.
        generator: of batches, times and noise.
        best: the averaged weights with the highest score; empty before the first score.
        step: optimiser steps taken.
        seconds: wall clock, earlier runs included.
        loss: running mean.
        resumed: how often this training was taken up again.
        scores: {"step": ..., "score": ...}, in order; a score that is not finite is None.
    """

    module: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    resumed: int = 0
    scores: list[dict[str, float | None]] = field(default_factory=list)


def write(directory: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Replace the checkpoint in ``directory`` by this state.

    Args:
        directory: created where it is missing.
        settings: JSON-able, whatever a resumed run must have in common with this one.

    Raises:
        CfaugError: the disk is full or not writable; the checkpoint before this one still stands.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _tensors(state).items()}
    header = {
        "format": _FORMAT,
        "settings": settings,
        "digest": _digest(tensors),
        **{name: getattr(state, name) for name in ("step", "seconds", "loss", "resumed", "scores")},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / _FILE, save(tensors, {"state": json.dumps(header)}))
    except OSError as error:
        raise CfaugError(
            f"the training checkpoint cannot be written to {directory} ({error.strerror}); free space or make it writable "
            "and run again: training goes on from the checkpoint before"
        ) from None


def keep(directory: Path, state: TrainingState, settings: dict[str, Any]) -> str:
    """Save the last good state of a training that cannot go on, unless what is on disk is as fresh.

    Returns a clause that says where the weights are: kept, or why they could not be.
    """
    try:
        fresh = exists(directory) and _load(directory)[0]["step"] >= state.step
    except ShardError:
        fresh = False
    try:
        if not fresh and finite(state):
            write(directory, state, settings)
    except CfaugError as error:
        return f"the last good weights are lost: {error}"
    if not exists(directory):
        return "no good weights were left to keep"
    return f"the last good weights (step {_load(directory)[0]['step']}) are kept in {directory}"


def finite(state: TrainingState) -> bool:
    """Whether every number of the state is finite."""
    return all(bool(t.isfinite().all()) for t in _tensors(state).values() if t.is_floating_point())


def read(directory: Path, state: TrainingState, settings: dict[str, Any]) -> bool:
    """Set ``state`` to the checkpoint in ``directory``; False where there is none.

    Raises:
        UsageError: it belongs to other settings or other data.
        ShardError: it is damaged.
    """
    if not (directory / _FILE).exists():
        return False
    header, tensors = _load(directory)
    theirs, ours = header["settings"], json.loads(json.dumps(settings))
    for name in sorted(set(theirs) | set(ours)):
        if theirs.get(name) != ours.get(name):
            raise UsageError(
                f"the training checkpoint in {directory} was made with {name} = {shown(theirs.get(name))}, but "
                f"{shown(ours.get(name))} came; delete that directory to train from the start, or set {name} back"
            )
    try:
        _restore(state, tensors)
        for name in ("step", "seconds", "loss", "scores"):
            setattr(state, name, header[name])
        state.resumed = header["resumed"] + 1
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise _damaged(directory, error) from None
    return True


def averaged(directory: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of the checkpoint in ``directory``, by name: the last good ones after a diverged training.

    Raises:
        ShardError: there is none, or it is damaged.
    """
    return _group(_load(directory)[1], "average/")


def exists(directory: Path) -> bool:
    """Whether ``directory`` holds a checkpoint."""
    return (directory / _FILE).exists()


def forget(directory: Path) -> None:
    """Delete the checkpoint in ``directory`` (what was trained is saved elsewhere by now), and it, if it is empty."""
    for path in (directory / _FILE, *directory.glob(f"{_FILE}.*{PARTIAL}")):
        path.unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    tensors = {"generator": state.generator.get_state()}
    groups = {"weights": state.module.state_dict(), "average": state.average.state_dict(), "best": state.best}
    for group, members in groups.items():
        tensors |= {f"{group}/{name}": tensor for name, tensor in members.items()}
    for name, parameter in state.module.named_parameters():
        moments = state.optimiser.state.get(parameter, {})
        tensors |= {f"moments/{name}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    return tensors


def _restore(state: TrainingState, tensors: dict[str, torch.Tensor]) -> None:
    state.module.load_state_dict(_group(tensors, "weights/"))
    state.average.load_state_dict(_group(tensors, "average/"))
    state.best = {
        name: torch.empty_like(current).copy_(tensors[f"best/{name}"])
        for name, current in state.average.state_dict().items()
        if f"best/{name}" in tensors
    }
    for name, parameter in state.module.named_parameters():
        moments = _group(tensors, f"moments/{name}/")
        # in the memory layout of the parameter, as the optimiser makes them: mixed layouts are slow, and promise no bits
        state.optimiser.state[parameter] = {
            key: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            for key, value in moments.items()
        }
    state.generator.set_state(tensors["generator"])


def _group(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(directory / _FILE, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != _FORMAT or header["digest"] != _digest(tensors):
            raise ValueError("format or digest differ")
    except Exception as error:  # the file system, safetensors and JSON each have their own
        raise _damaged(directory, error) from None
    return header, tensors


def _damaged(directory: Path, error: Exception) -> ShardError:
    return ShardError(
        f"corrupt training checkpoint in {directory}: expected {_FILE} as training writes it, but "
        f"{one_line(error, 160)}; delete that directory to train from the start"
    )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
