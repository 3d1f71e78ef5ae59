"""A training that can be killed: everything the next step depends on, in one file that is either whole or not there.

    DIR/training.safetensors    weights, their average, the best average, moments of the optimiser;
                                in its header, as JSON: step, seconds, loss, scores, settings and a digest of all tensors

One file, because two files could come from two different steps. No pickle: nothing in a checkpoint is executed. Randomness
needs no place in it: every step draws from (seed, step).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cfaug.data.files import replace_file
from cfaug.errors import CfaugError, ShardError, UsageError, one_line, shown

_FILE, _FORMAT = "training.safetensors", 2
_NUMBERS = ("step", "seconds", "loss", "resumed", "scores")


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        module: the network that is trained.
        average: diffusers' EMAModel of its parameters.
        optimiser: with its moments.
        best: the averaged parameters with the highest score; empty before the first score.
        step: optimiser steps taken.
        seconds: wall clock, including earlier runs.
        loss: running mean.
        resumed: how often this training went on from a checkpoint.
        scores: {"step": ..., "score": ...}, in order; None for a score that is not finite.
    """

    module: nn.Module
    average: Any
    optimiser: torch.optim.Optimizer
    best: list[torch.Tensor] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    resumed: int = 0
    scores: list[dict[str, float | None]] = field(default_factory=list)


def write(directory: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Replace the checkpoint in ``directory`` by this state.

    Args:
        directory: created where it is missing.
        state: is not changed.
        settings: JSON-able; a resumed run must have the same.

    Raises:
        CfaugError: the disk is full or not writable; the checkpoint before this one still stands.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(state).items()}
    header = {"format": _FORMAT, "settings": settings, "digest": _digest(tensors)}
    header |= {name: getattr(state, name) for name in _NUMBERS}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / _FILE, save(tensors, {"state": json.dumps(header)}))
    except OSError as error:
        raise CfaugError(
            f"the training checkpoint cannot be written to {directory} ({error.strerror}); free space or make it writable "
            "and run again: training goes on from the checkpoint before"
        ) from None


def read(directory: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Set ``state`` to the checkpoint in ``directory``; without one, nothing happens.

    Raises:
        UsageError: the checkpoint belongs to different settings or different data.
        ShardError: the checkpoint is damaged.
    """
    from safetensors import safe_open

    path, ours = directory / _FILE, json.loads(json.dumps(settings))
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header["format"] != _FORMAT or header["digest"] != _digest(tensors):
            raise ValueError("a different format or digest")
        theirs = header["settings"]
        differ = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        if not differ:
            _restore(state, header, tensors)
    except Exception as error:  # the file system, safetensors, JSON and torch each raise their own
        raise ShardError(
            f"corrupt training checkpoint in {directory}: expected {_FILE} as training writes it, got "
            f"{one_line(error, 160)}; delete that directory to train from the start"
        ) from None
    for name in differ:
        raise UsageError(
            f"expected {name} = {shown(theirs.get(name))}, as in the training checkpoint in {directory}, got "
            f"{shown(ours.get(name))}; set it back, or delete that directory to train from the start"
        )


def _tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    tensors = {f"weights/{name}": tensor for name, tensor in state.module.state_dict().items()}
    for place, (name, parameter) in enumerate(state.module.named_parameters()):
        tensors[f"average/{name}"] = state.average.shadow_params[place]
        if state.best:
            tensors[f"best/{name}"] = state.best[place]
        for key, value in state.optimiser.state[parameter].items():
            tensors[f"moments/{key}/{name}"] = value
    return tensors


def _restore(state: TrainingState, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    state.module.load_state_dict(weights)
    moments = {name.split("/")[1] for name in tensors if name.startswith("moments/")}
    for place, (name, parameter) in enumerate(state.module.named_parameters()):

        def like(key: str, parameter: torch.Tensor = parameter) -> torch.Tensor:
            # in the memory layout of the parameter, as the optimiser makes them: mixed layouts are slow, and promise no bits
            saved = tensors[key]
            return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape else saved

        state.average.shadow_params[place] = like(f"average/{name}").detach()
        if f"best/{name}" in tensors:
            state.best.append(like(f"best/{name}").detach())
        state.optimiser.state[parameter] = {moment: like(f"moments/{moment}/{name}").detach() for moment in moments}
    for number in _NUMBERS:
        setattr(state, number, header[number])
    state.resumed += 1
    state.average.optimization_step = state.step


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
