"""Training the velocity network: conditional flow matching with rare attribute combinations weighted up.

    loss = E || v(x_t, t, pa, s) - (n - x) ||^2,   x_t = (1 - t) x + t n,   t ~ logit-normal (Esser et al., 2024)

Images are drawn with weight count(cell) ** -cell_power, attribute blocks are hidden independently (a hidden block is
"unknown", which partial labels and decoupled guidance need), and the weights that are kept are an exponential average.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from cfaug.config import DecoderConfig
from cfaug.decode.network import VelocityNet
from cfaug.decode.structure import structure_map
from cfaug.errors import CfaugError

_EMA = 0.999


@dataclass(frozen=True)
class FitReport:
    """What training did.

    Attributes:
        steps: optimiser steps.
        seconds: wall clock.
        loss: running mean of the loss at the end.
        images: training images.
    """

    steps: int
    seconds: float
    loss: float
    images: int


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


def train_velocity(
    net: VelocityNet,
    images: torch.Tensor,
    condition: torch.Tensor,
    cells: torch.Tensor,
    config: DecoderConfig,
    blocks: list[torch.Tensor],
    seed: int,
    progress: bool = True,
) -> FitReport:
    """Train ``net`` in place and leave it with its averaged weights, in evaluation mode.

    Args:
        net: v(x, t, condition, structure).
        images: shape (N, C, H, W), uint8.
        condition: shape (N, D), encoded parents and presence flags.
        cells: shape (N,), number of images with the same attributes.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate.
        blocks: for each parent its columns of ``condition``.
        seed: of batches, times and noise.

    Raises:
        CfaugError: the loss is not finite; the message says at which step.
    """
    device = torch.device(config.device)
    seconds = config.seconds or (math.inf if config.max_steps else budget_seconds(len(images)))
    height, width = images.shape[2:]
    padding = (0, -width % net.multiple, 0, -height % net.multiple)
    weights = cells.pow(-config.cell_power)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    net.train()
    started, step, running = time.monotonic(), 0, 0.0
    share = 0.0
    with tqdm(total=100, desc="decoder", unit="%", disable=not progress, leave=True) as bar:
        while share < 1:
            for group in optimiser.param_groups:
                group["lr"] = (
                    config.learning_rate * min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * share))
                )
            batch = torch.multinomial(weights, config.batch_size, replacement=True, generator=generator)
            loss = _loss(net, images[batch], condition[batch], config, blocks, padding, device, generator)
            value = loss.item()
            if not math.isfinite(value):
                raise CfaugError(
                    f"decoder training diverged: the loss became {value} at step {step + 1}; "
                    f"lower decoder.learning_rate (now {config.learning_rate:g}) and run again"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            _blend(average, net.state_dict(), min(_EMA, (1 + step) / (10 + step)))
            step += 1
            running += (value - running) / min(step, 100)
            share = progress_share(step, config.max_steps, (time.monotonic() - started) / seconds)
            bar.update(min(100, int(100 * share)) - bar.n)
            bar.set_postfix(step=step, loss=f"{running:.3f}", refresh=False)
    net.load_state_dict(average)
    net.eval()
    return FitReport(step, round(time.monotonic() - started, 2), round(running, 5), len(images))


def _loss(
    net: VelocityNet,
    images: torch.Tensor,
    condition: torch.Tensor,
    config: DecoderConfig,
    blocks: list[torch.Tensor],
    padding: tuple[int, int, int, int],
    device: torch.device,
    generator: torch.Generator,
) -> torch.Tensor:
    x = F.pad(images.float() / 127.5 - 1, padding, mode="replicate")
    structure = structure_map(x, config.structure)
    noise = torch.randn(x.shape, generator=generator)
    t = torch.sigmoid(torch.randn(len(x), generator=generator))
    for block in blocks:
        hidden = torch.rand(len(x), generator=generator) < config.drop_attribute
        condition[hidden[:, None] & torch.isin(torch.arange(condition.shape[1]), block)[None]] = 0
    x, noise, t = x.to(device), noise.to(device), t.to(device)
    at = t.view(-1, 1, 1, 1)
    with torch.autocast(device.type, torch.bfloat16):
        velocity = net((1 - at) * x + at * noise, t, condition.to(device), structure.to(device))
    return F.mse_loss(velocity.float(), noise - x)


def _blend(average: dict[str, Any], current: dict[str, Any], keep: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - keep)
