"""Arithmetic of one 512 px counterfactual, counted and run: the autoencoder of a latent decoder, and its network.

    python benchmarks/flops.py            three minutes on one thread; appends to benchmarks/results/offline.jsonl

The autoencoder has the shape that latent diffusion models commonly have (diffusers' AutoencoderKL, widths 128, 256, 512,
512, eight-fold reduction, 4 channels), with random weights: neither the number of operations nor their time depends on
them. Operations are counted by torch's FlopCounterMode (a multiply-add is two) on the meta device; the time is one thread
of this processor, float32. `evaluations` network evaluations make one counterfactual (abduction and prediction together).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rows import cpu, record
from torch.utils.flop_counter import FlopCounterMode

from cfaug.decode.diffusion.network import VelocityNet
from cfaug.decode.diffusion.sampling import evaluations

SIZE, FACTOR, LATENT = 512, 8, 4


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    widths = (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths,
        layers_per_block=2, latent_channels=LATENT, sample_size=SIZE,
    ).eval()  # fmt: skip


def network(channels: list[int]) -> VelocityNet:
    return VelocityNet(LATENT, 16, 0, 1, channels).eval()


def counted(call: Any, *inputs: torch.Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call(*inputs)
    return int(counter.get_total_flops())


def seconds(call: Any, *inputs: torch.Tensor) -> float:
    with torch.inference_mode():
        call(*inputs)
        started = time.perf_counter()
        call(*inputs)
        return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    side = SIZE // FACTOR
    image, latent = torch.randn(1, 3, SIZE, SIZE), torch.randn(1, LATENT, side, side)
    inputs = [latent, torch.full((1,), 0.5), torch.randn(1, 16), torch.randn(1, 0, side, side)]
    found: dict[str, Any] = {"what": "flops", "pixels": SIZE}
    with torch.device("meta"):
        meta = autoencoder()
        found["encode_gflop"] = counted(meta.encode, image.to("meta")) / 1e9
        found["decode_gflop"] = counted(meta.decode, latent.to("meta")) / 1e9
    real = autoencoder()
    found["encode_seconds"], found["decode_seconds"] = seconds(real.encode, image), seconds(real.decode, latent)
    for channels in ([64, 96], [320, 640, 1280]):
        name = "x".join(map(str, channels))
        net = network(channels)
        found[f"network_{name}_gflop"] = counted(net, *inputs) / 1e9
        found[f"network_{name}_seconds"] = seconds(net, *inputs)
        found[f"network_{name}_parameters"] = sum(p.numel() for p in net.parameters())
    found["evaluations"] = {"reversible, 3 steps": evaluations("reversible", 3)}
    found = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
    place = Path(__file__).parent / "results" / "offline.jsonl"
    record(place, found, command="python benchmarks/flops.py", cpu=cpu(), torch=torch.__version__)


if __name__ == "__main__":
    main()
