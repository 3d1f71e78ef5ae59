"""The training loop of every network of this room: AdamW, warm-up, cosine, averaged weights, and what can go wrong.

    w <- AdamW(w, clip(gradient)),   a <- k a + (1 - k) w,   k = min(0.999, (1 + step) / (10 + step));   a is what is kept

A loss is a function of (module, rows, generator); the loop brings the rows, the budget, exact resuming after a kill, early
stopping by a score, one-line errors, and several processes under ``torchrun``. All randomness comes from one generator;
the global streams are seeded anew at every step, so that dropout is the same again after a kill, and put back at the end.

Not promised: the same bits from another machine, number of threads or processes, or from a budget in seconds.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from cfaug.config import DecoderConfig
from cfaug.decode.diffusion import checkpoint as disk
from cfaug.decode.diffusion import distributed as processes
from cfaug.decode.diffusion.checkpoint import TrainingState, averaged, forget
from cfaug.errors import CfaugError, UsageError, lacks_memory, one_line

__all__ = ["FitReport", "Loss", "autocast", "averaged", "budget_seconds", "forget", "optimise", "progress_share"]

Loss = Callable[[nn.Module, torch.Tensor, torch.Generator], torch.Tensor]
"""(module, rows of the data (B,), generator) -> scalar.

The module may be compiled; call it, not one held from outside. Random numbers come from ``processes.normal`` and
``uniform`` with the generator: torch.randn gives every process the same ones."""

_EMA = 0.999
_FREE = (
    "device",
    "compile",
    "checkpoint_seconds",
)  # where and how fast, not what is trained


@dataclass(frozen=True)
class FitReport:
    """What training did.

    Attributes:
        steps: optimiser steps.
        seconds: wall clock, earlier runs of a resumed training included.
        loss: running mean of the loss at the end.
        images: training images.
        resumed: how often it went on from a checkpoint.
        stopped: ``budget``, or ``early``: the score no longer improved.
        scores: {"step": ..., "score": ...} for each validation, in order; None where it was not finite.
    """

    steps: int
    seconds: float
    loss: float
    images: int
    resumed: int = 0
    stopped: str = "budget"
    scores: list[dict[str, float | None]] = field(default_factory=list)


def budget_seconds(images: int) -> float:
    """The default training budget: 3 minutes at 2 000 images, 25 at 20 000, in between in proportion to log(images)."""
    share = math.log(max(images, 1) / 2000) / math.log(10)
    return float(60.0 * min(25.0, max(1.0, 3.0 * (25.0 / 3.0) ** share)))


def progress_share(step: int, max_steps: int | None, elapsed: float) -> float:
    """How much of the training is done, in [0, 1]; the learning rate follows it, and 1 ends the training.

    With ``max_steps`` it depends on steps alone, so that the same seed trains the same network. Only on a machine that
    will not make it in time does the clock take over, for the last fifth: training then still ends annealed.

    Args:
        step: optimiser steps taken.
        max_steps: steps to take, or None for as many as the time allows.
        elapsed: share of the allowed seconds that has passed.
    """
    if max_steps is None:
        return elapsed
    done = step / max_steps
    return max(done, elapsed) if elapsed > 0.8 else done


def autocast(config: DecoderConfig) -> AbstractContextManager[Any]:
    """bfloat16 where ``config.bf16`` asks for it; never on mps, whose autocast lacks some of the operations."""
    kind = torch.device(config.device).type
    return torch.autocast(kind, torch.bfloat16) if config.bf16 and kind != "mps" else nullcontext()


def optimise(
    module: nn.Module,
    loss: Loss,
    weights: torch.Tensor,
    config: DecoderConfig,
    seed: int,
    *,
    score: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: bool = True,
    what: str = "decoder",
) -> FitReport:
    """Train ``module`` in place and leave it with its averaged weights (the best scored ones), in evaluation mode.

    Args:
        module: any network; under torchrun every process holds its own copy, and all end with the same weights.
        loss: the mean over the rows it is given.
        weights: shape (N,), > 0: how often each row of the data is drawn, in proportion.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate, validation, checkpoints, device.
        seed: of all randomness.
        score: of a module with averaged weights, higher is better; asked every ``config.validate_every`` steps.
        checkpoint: directory to resume from and to keep the state in; :func:`forget` it once the result is saved.
        identity: a digest of the data; a checkpoint of other data is refused.
        progress: whether to show a bar.
        what: is trained, for messages.

    Raises:
        CfaugError: the loss is not finite (the message names the step), or the memory does not suffice.
        UsageError: the checkpoint is of other settings or data, or the batch cannot be shared out among the processes.
        ShardError: the checkpoint is damaged.
    """
    rank, world = processes.join(config.device)
    if config.batch_size % world:
        raise UsageError(
            f"decoder.batch_size must be a multiple of the {world} processes, but {config.batch_size} came; "
            f"use {config.batch_size + -config.batch_size % world}"
        )
    device = processes.own_device(config.device)
    processes.share(module.to(device).train())
    state = TrainingState(
        module,
        copy.deepcopy(module).eval(),
        torch.optim.AdamW(module.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3),
        torch.Generator().manual_seed(seed),
    )
    settings = _settings(module, weights, config, seed, identity, what)
    if checkpoint:
        processes.mean([0.0], device)  # nobody reads while the first process still writes
        disk.read(checkpoint, state, settings)
        if processes.mean([state.step], device) != [state.step]:
            raise UsageError(f"not every process finds the same checkpoint in {checkpoint}; use a directory all share")
    seconds = config.seconds or (math.inf if config.max_steps else budget_seconds(len(weights)))
    own = slice(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
    before, started, written = state.seconds, time.monotonic(), time.monotonic()

    def clock() -> float:
        return before + time.monotonic() - started

    validate = config.validate_every if score else None
    share = progress_share(state.step, config.max_steps, state.seconds / seconds)
    stopped = "budget"
    with ExitStack() as stack:
        stack.enter_context(_own_streams(device))
        stack.enter_context(_explained(config, world, what))
        bar = stack.enter_context(tqdm(total=100, desc=what, unit="%", disable=not progress or rank > 0))
        forward = _forward(module, loss, config, world)
        while share < 1:
            _anneal(state, config, share)
            torch.manual_seed(((seed << 24) + state.step * world + rank) % 2**63)
            drawn = state.generator.get_state()
            batch = torch.multinomial(weights, config.batch_size, replacement=True, generator=state.generator)
            try:
                state.seconds = _step(state, forward, batch[own], clock, device)
            except FloatingPointError as error:
                state.generator.set_state(drawn)  # what is kept is the state before this step
                raise _diverged(state, f"{what} training diverged: {error}", config, checkpoint, settings) from None
            share = progress_share(state.step, config.max_steps, state.seconds / seconds)
            if score and validate and (state.step % validate == 0 or share >= 1):
                _validate(state, score, rank, world, device)
                if share < 1 and _stale(state.scores) >= config.patience:
                    stopped = "early"
                    break
            if checkpoint and rank == 0 and time.monotonic() - written >= config.checkpoint_seconds:
                disk.write(checkpoint, state, settings)
                written = time.monotonic()
            bar.update(min(100, int(100 * share)) - bar.n)
            bar.set_postfix(step=state.step, loss=f"{state.loss:.3f}", refresh=False)
    module.load_state_dict(state.best or state.average.state_dict())
    module.eval()
    return FitReport(
        state.step,
        round(state.seconds, 2),
        round(state.loss, 5),
        len(weights),
        state.resumed,
        stopped,
        state.scores,
    )


def _settings(
    module: nn.Module, weights: torch.Tensor, config: DecoderConfig, seed: int, identity: str, what: str
) -> dict[str, Any]:
    """What a resumed training must have in common with the one that was killed."""
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in module.state_dict().items()]
    content = {f"decoder.{k}": v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
    place = content["decoder.autoencoder"]
    return {
        **content,
        "decoder.autoencoder": Path(place).name if place else None,  # its latents are in the digest of the data
        "seed": seed,
        "network": f"{what} {hashlib.sha256(' '.join(shapes).encode()).hexdigest()}",
        "data": identity,
        "weights": hashlib.sha256(weights.double().contiguous().numpy().data).hexdigest(),
    }


def _anneal(state: TrainingState, config: DecoderConfig, share: float) -> None:
    """50 steps of warm-up, then a cosine down to a fiftieth."""
    rate = config.learning_rate * min(1.0, (state.step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * share))
    for group in state.optimiser.param_groups:
        group["lr"] = rate


class _Whole(nn.Module):
    """The loss as the forward pass: DistributedDataParallel averages gradients of what its forward pass used, and a loss
    may use the network more than once, or by other methods than forward."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.loss(self.module, batch, generator)


def _forward(
    module: nn.Module, loss: Loss, config: DecoderConfig, world: int
) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    whole = _Whole(torch.compile(module) if config.compile else module, loss)  # type: ignore[arg-type]
    if world == 1:
        return whole
    return nn.parallel.DistributedDataParallel(whole, find_unused_parameters=True)


def _step(
    state: TrainingState,
    forward: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    batch: torch.Tensor,
    clock: Callable[[], float],
    device: torch.device,
) -> float:
    """One optimiser step; returns the elapsed seconds on which all processes agree (their learning rates follow it).

    Raises:
        FloatingPointError: loss or gradient are not finite; nothing has been changed by then.
    """
    loss = forward(batch, state.generator)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    value, elapsed = processes.mean([loss.item(), clock()], device)
    for name, number in (("loss", value), ("gradient", float(norm))):
        if not math.isfinite(number):
            raise FloatingPointError(f"the {name} became {number}")
    state.optimiser.step()
    _blend(state, min(_EMA, (1 + state.step) / (10 + state.step)))
    state.step += 1
    state.loss += (value - state.loss) / min(state.step, 100)
    return elapsed


def _blend(state: TrainingState, keep: float) -> None:
    average, current = state.average.state_dict(), state.module.state_dict()
    floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([average[name] for name in floats], [current[name] for name in floats], 1 - keep)
        for name in average.keys() - set(floats):
            average[name].copy_(current[name])


def _diverged(
    state: TrainingState, reason: str, config: DecoderConfig, checkpoint: Path | None, settings: dict[str, Any]
) -> CfaugError:
    """Give the module its last good averaged weights back, and keep the state on disk where a checkpoint is asked for."""
    lower = f"decoder.learning_rate={config.learning_rate / 4:g}"
    cure = f"set {lower} and train again"
    if checkpoint and processes.primary():
        kept = disk.keep(checkpoint, state, settings)
        cure = f"{kept}; `cfaug fit RECIPE.yaml --out DIR --overwrite --{lower}` deletes that and starts over, another --out keeps both"
    older = checkpoint if checkpoint and disk.exists(checkpoint) and not disk.finite(state) else None
    state.module.load_state_dict(averaged(older) if older else state.average.state_dict())
    state.module.eval()
    return CfaugError(f"{reason} at step {state.step + 1}, with decoder.learning_rate {config.learning_rate:g}; {cure}")


def _validate(
    state: TrainingState, score: Callable[[nn.Module], float], rank: int, world: int, device: torch.device
) -> None:
    """Score the averaged weights, in one process for all, and keep them where they are the best so far."""
    with torch.no_grad():
        own = float(score(state.average.eval())) if rank == 0 else 0.0
    value = processes.mean([own], device)[0] * world
    best = max((s["score"] for s in state.scores if s["score"] is not None), default=-math.inf)
    state.scores.append({"step": state.step, "score": value if math.isfinite(value) else None})
    if value > best and math.isfinite(value):
        state.best = {name: tensor.detach().clone() for name, tensor in state.average.state_dict().items()}


def _stale(scores: list[dict[str, float | None]]) -> int:
    """How many scores have come since the first of the highest ones; all of them where none is finite."""
    values = [-math.inf if s["score"] is None else s["score"] for s in scores]
    if not values or max(values) == -math.inf:
        return len(values)
    return len(values) - 1 - values.index(max(values))


@contextmanager
def _own_streams(device: torch.device) -> Iterator[None]:
    """The loop seeds the global streams; whoever called gets theirs back."""
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield


@contextmanager
def _explained(config: DecoderConfig, world: int, what: str) -> Iterator[None]:
    """What torch says in a page, said in a line: not enough memory, no compiler."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = one_line(error)
        if lacks_memory(error):
            half = max(world, config.batch_size // 2 // world * world)
            less = f"decoder.batch_size={half}" if half < config.batch_size else "fewer decoder.channels"
            raise CfaugError(
                f"not enough memory on {config.device} to train the {what} with decoder.batch_size "
                f"{config.batch_size}; set {less}"
            ) from None
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise CfaugError(
                f"decoder.compile needs a compiler that can build the {what}, but {message[:160]} came; "
                "set decoder.compile=false"
            ) from None
        raise
