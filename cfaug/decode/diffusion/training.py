"""The training loop: AdamW, warm-up, cosine, averaged weights (diffusers' EMAModel), exact resuming, early stopping.

    w <- AdamW(w, clip(gradient)),   a <- k a + (1 - k) w,   k = min(0.999, step / (9 + step));   a is what is kept

A loss is a function of (module, rows, generator). The loop brings the rows, the budget, the checkpoints, a score to stop by,
one-line errors, and several processes under ``torchrun``. Every step draws its randomness from (seed, step), dropout
included, so that it is the same after a kill; the caller's global streams are put back at the end.

Not promised: the same bits from a different machine, number of threads or processes, or from a budget in seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from cfaug.config import DecoderConfig
from cfaug.decode.diffusion import checkpoint as disk
from cfaug.decode.diffusion import distributed as processes
from cfaug.decode.mechanism import FitReport
from cfaug.errors import CfaugError, UsageError, lacks_memory, one_line

Loss = Callable[[nn.Module, torch.Tensor, torch.Generator], torch.Tensor]
"""(module, rows of the data (B,), generator) -> scalar.

Call the module that is given, once: it may be compiled or shared among processes. Random numbers come from
``distributed.own_rows`` with the generator: torch.randn gives every process the same ones."""

_DECAY = 0.999
_FREE = ("device", "compile", "checkpoint_seconds")  # where and how fast, not what is trained


def budget_seconds(images: int) -> float:
    """The default training budget: 3 minutes at 2 000 images, 25 at 20 000, in between in proportion to log(images)."""
    share = math.log(max(images, 1) / 2000) / math.log(10)
    return float(60.0 * min(25.0, max(1.0, 3.0 * (25.0 / 3.0) ** share)))


def progress_share(step: int, max_steps: int | None, elapsed: float) -> float:
    """How much of the training is done, in [0, 1], after so many steps and that share of the allowed seconds.

    The learning rate follows it, and 1 ends the training. With ``max_steps`` it depends on steps alone, so that the same
    seed trains the same network. Only on a machine that will not make it within ``seconds`` does the clock take over, for
    the last fifth: training then still ends annealed.
    """
    if max_steps is None:
        return elapsed
    return max(step / max_steps, elapsed) if elapsed > 0.8 else step / max_steps


def seed_of(*numbers: int) -> int:
    """A seed for torch of the hashed numbers: torch's own generator on the CPU reads 32 bits of a seed only."""
    words = np.array([number % 2**64 for number in numbers], dtype=np.uint64).view(np.uint32)
    return int(np.random.SeedSequence(words.tolist()).generate_state(1)[0])


def optimise(
    module: nn.Module,
    loss: Loss,
    weights: torch.Tensor,
    config: DecoderConfig,
    seed: int,
    *,
    score: Callable[[], float] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: bool = True,
) -> FitReport:
    """Train ``module`` in place and leave it with its averaged weights (the best scored ones), in evaluation mode.

    Args:
        module: any network; under torchrun all processes start with the weights of the first and end with the same ones.
        loss: the mean over the rows it is given.
        weights: shape (N,), > 0: how often each row of the data is drawn, in proportion.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate, validation, checkpoints, device.
        seed: of all randomness.
        score: asked every ``config.validate_every`` steps, while ``module`` has its averaged weights; higher is better.
        checkpoint: directory to resume from and to keep the state in.
        identity: a digest of the data; a checkpoint of different data is refused.
        progress: whether to show a bar.

    Raises:
        CfaugError: the loss is not finite (the message names the step), or the memory does not suffice.
        UsageError: the checkpoint is of different settings or data, or the processes cannot share the batch.
        ShardError: the checkpoint is damaged.
    """
    from diffusers.training_utils import EMAModel

    device = config.device
    rank, world = processes.join(device)
    if config.batch_size % world:
        more = config.batch_size + -config.batch_size % world
        raise UsageError(
            f"expected decoder.batch_size to be a multiple of the {world} processes, got {config.batch_size}; use {more}"
        )
    forward: Any = torch.compile(module.to(device).train()) if config.compile else module.to(device).train()
    if world > 1:  # it gives every process the weights of the first
        forward = nn.parallel.DistributedDataParallel(forward)
    state = disk.TrainingState(
        module,
        EMAModel(module.parameters(), decay=_DECAY, foreach=True),
        torch.optim.AdamW(module.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3),
    )
    settings = _settings(module, config, seed, identity)
    if checkpoint:
        processes.first(0, device)  # nobody reads while the first process still writes
        disk.read(checkpoint, state, settings)
        if processes.mean([state.step], device) != [state.step]:
            raise UsageError(
                f"expected every process to find the same checkpoint in {checkpoint}; use a directory all share"
            )
    seconds = config.seconds or (math.inf if config.max_steps else budget_seconds(len(weights)))
    own = slice(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
    began = time.monotonic() - state.seconds
    written, stopped, generator = time.monotonic(), "budget", torch.Generator()
    validate = config.validate_every if score else None
    share = progress_share(state.step, config.max_steps, state.seconds / seconds)
    bar = tqdm(total=100, desc="decoder", unit="%", disable=not progress or rank > 0)
    cards = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(cards), _explained(config, world), bar:
        while share < 1:
            for group in state.optimiser.param_groups:
                group["lr"] = _rate(config.learning_rate, state.step, share)
            draw = seed_of(seed, state.step)
            torch.manual_seed(draw + rank)
            rows = torch.multinomial(weights, config.batch_size, True, generator=generator.manual_seed(draw))
            value = loss(forward, rows[own], generator)
            state.optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            norm = float(nn.utils.clip_grad_norm_(module.parameters(), 1.0))
            # seconds on which all processes agree: their learning rates follow them
            mean, elapsed = processes.mean([value.item(), time.monotonic() - began], device)
            if not math.isfinite(mean + norm):
                raise _diverged(state, f"loss became {mean}, the gradient {norm}", config, checkpoint, settings)
            state.optimiser.step()
            state.average.step(module.parameters())
            state.step, state.seconds = state.step + 1, elapsed
            state.loss += (mean - state.loss) / min(state.step, 100)
            share = progress_share(state.step, config.max_steps, elapsed / seconds)
            if score and validate and (state.step % validate == 0 or share >= 1):
                _validate(state, score, device)
                if share < 1 and _stale(state.scores) >= config.patience:
                    stopped = "early"
                    break
            if checkpoint and rank == 0 and time.monotonic() - written >= config.checkpoint_seconds:
                disk.write(checkpoint, state, settings)
                written = time.monotonic()
            bar.update(min(100, int(100 * share)) - bar.n)
            bar.set_postfix(step=state.step, loss=f"{state.loss:.3f}", refresh=False)
    state.average.shadow_params = state.best or state.average.shadow_params
    state.average.copy_to(module.parameters())
    module.eval()
    spent, last = round(state.seconds, 2), round(state.loss, 5)
    return FitReport(state.step, spent, last, len(weights), state.resumed, stopped, state.scores)


def _settings(module: nn.Module, config: DecoderConfig, seed: int, identity: str) -> dict[str, Any]:
    """What a resumed training must have in common with the one that was killed."""
    shapes = " ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in module.state_dict().items())
    content = {f"decoder.{k}": v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
    place = content["decoder.autoencoder"]  # only its name: its latents are in the digest of the data
    content["decoder.autoencoder"] = Path(place).name if place else None
    network = hashlib.sha256(shapes.encode()).hexdigest()
    return {**content, "seed": seed, "network": network, "data": identity}


def _rate(highest: float, step: int, share: float) -> float:
    """The learning rate: 50 steps of warm-up, then a cosine down to a fiftieth."""
    return highest * min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * share))


def _diverged(
    state: disk.TrainingState, what: str, config: DecoderConfig, checkpoint: Path | None, settings: dict[str, Any]
) -> CfaugError:
    """The error for a step that was not taken; the state before it stays on disk where a checkpoint is asked for."""
    kept = ""
    if checkpoint and state.step and processes.primary():
        disk.write(checkpoint, state, settings)
        kept = f" (the last good weights, of step {state.step}, are kept in {checkpoint})"
    lower = f"--overwrite --decoder.learning_rate={config.learning_rate / 4:g}"
    return CfaugError(
        f"decoder training diverged at step {state.step + 1}: expected finite numbers, but with decoder.learning_rate "
        f"{config.learning_rate:g} the {what}{kept}; train again with `cfaug fit RECIPE.yaml --out DIR {lower}`"
    )


def _validate(state: disk.TrainingState, score: Callable[[], float], device: str) -> None:
    """Score the averaged weights, in one process for all, and keep them where they are the best so far."""
    state.average.store(state.module.parameters())
    state.average.copy_to(state.module.parameters())
    state.module.eval()
    with torch.no_grad():
        value = processes.first(float(score()) if processes.place()[0] == 0 else 0.0, device)
    state.average.restore(state.module.parameters())
    state.module.train()
    best = max((s["score"] for s in state.scores if s["score"] is not None), default=-math.inf)
    state.scores.append({"step": state.step, "score": value if math.isfinite(value) else None})
    if math.isfinite(value) and value > best:
        state.best = [parameter.clone() for parameter in state.average.shadow_params]


def _stale(scores: list[dict[str, float | None]]) -> int:
    """How many scores have come since the first of the highest ones; all of them where no score is finite."""
    values = [-math.inf if s["score"] is None else s["score"] for s in scores]
    return len(values) - 1 - values.index(max(values)) if max(values) > -math.inf else len(values)


@contextmanager
def _explained(config: DecoderConfig, world: int) -> Iterator[None]:
    """What torch says in a page, said in a line: not enough memory, no compiler."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if lacks_memory(error):
            half = max(world, config.batch_size // 2 // world * world)
            less = f"decoder.batch_size={half}" if half < config.batch_size else "fewer decoder.channels"
            raise CfaugError(
                f"not enough memory on {config.device} to train the decoder with decoder.batch_size "
                f"{config.batch_size}; set {less}"
            ) from None
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise CfaugError(
                f"expected a compiler that can build the decoder, got {one_line(error, 160)}; set decoder.compile=false"
            ) from None
        raise
