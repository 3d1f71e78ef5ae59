"""An in-painting pipeline of Stable Diffusion's class, trained here from scratch on one folder of confounded images.

Autoencoder, then U-Net and text encoder together, then as long again with half of each batch from images whose attributes do not go
together as usual: without them the net takes one attribute from another's word, or from the object that it sees. Every phase is kept, so
a second call resumes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import tiny_pipelines as tiny
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

from cfaug.data import FolderDataset
from cfaug.decode.editors.open_pipeline import resized

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Task:
    """What a pipeline is trained on.

    Attributes:
        root: the folder.
        target: its label.
        spurious: its other attributes, all of which ``template`` names.
        usual: the columns that go together in most images.
        template: the prompt.
        side: pixels at which edits are made.
        channels: of the autoencoder; each but the last halves the image.
        regions: how often the object, all but the object, and the whole image are to be drawn.
        steps: of each phase.
        first_batch: images in a step of the autoencoder.
    """

    root: Path
    target: str
    spurious: tuple[str, ...]
    usual: tuple[str, ...]
    template: str
    side: int
    channels: tuple[int, ...]
    regions: tuple[float, float, float]
    steps: tuple[int, int, int]
    first_batch: int = BATCH


def word_tokenizer(prompts: Sequence[str]) -> Any:
    """One whose tokens are the prompts' words, which are not spelled; for prompts of up to ten words."""
    tokenizer = tiny._clip_tokenizer()
    tokenizer.model_max_length = 12
    tokenizer.add_tokens(sorted({word for prompt in prompts for word in prompt.split()}))
    return tokenizer


def train(out: Path, task: Task) -> float:
    """Write ``out/pipeline``; the seconds that it took."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    side = task.side
    data = FolderDataset(task.root, "train", task.target, list(task.spurious), masks="mask")
    images = torch.stack([to_tensor(resized(data.image(i), (side, side))) for i in range(len(data))]) * 2 - 1
    masks = [Image.fromarray(data.mask(i)).resize((side, side), Image.Resampling.NEAREST) for i in range(len(data))]
    inside = torch.stack([to_tensor(mask) for mask in masks]) > 0.5
    prompts = [task.template.format(**{str(k): v for k, v in row.items()}) for row in data.table.to_dict("records")]
    torch.manual_seed(0)
    tokenizer = word_tokenizer(prompts)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, pad_token_id=1, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    levels = len(task.channels)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    vae = diffusers.AutoencoderKL(
        **{**tiny.AUTOENCODER, **blocks, "block_out_channels": task.channels, "sample_size": side}, latent_channels=4
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=side // 2 ** (len(task.channels) - 1), in_channels=9, out_channels=4, layers_per_block=1, block_out_channels=(48, 96), norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    began = time.monotonic()

    usual = data.table.groupby(list(task.usual)).ngroup()
    common = torch.from_numpy((usual.map(usual.value_counts()) > len(data) / 50).to_numpy())

    def phase(name: str, nets: Sequence[Any], count: int, loss: Any, rate: float, rare: bool = False) -> None:
        """Train, unless it was trained before; ``rare``: half of each batch are images whose ground does not go with their colour."""
        kept = out / f"{name.replace(' ', '_')}.pt"
        if kept.exists():
            for net, state in zip(nets, torch.load(kept, weights_only=True)):
                net.load_state_dict(state)
        else:
            chance = torch.where(common, 1 / common.sum(), 1 / (~common).sum()) if rare else torch.ones(len(data))
            steps(nets, count, loss, rate, chance)
            torch.save([net.state_dict() for net in nets], kept)
        for net in nets:
            net.eval().requires_grad_(False)

    def steps(nets: Sequence[Any], count: int, loss: Any, rate: float, chance: torch.Tensor) -> None:
        for net in nets:
            net.train().requires_grad_(True)
        weights = [weight for net in nets for weight in net.parameters()]
        average = diffusers.training_utils.EMAModel(weights, decay=0.995)
        optimiser = torch.optim.AdamW(weights, lr=rate)
        annealed = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=count)
        for step in range(count):
            value = loss(torch.multinomial(chance, BATCH, replacement=True))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            annealed.step()
            average.step(weights)
            if step % 100 == 0:
                print(step, round(float(value.detach()), 4), round(time.monotonic() - began), flush=True)
        average.copy_to(weights)

    def rebuilt(rows: torch.Tensor) -> torch.Tensor:
        rows = rows[: task.first_batch]
        posterior = vae.encode(images[rows]).latent_dist
        found: torch.Tensor = (
            vae.decode(posterior.sample()).sample - images[rows]
        ).abs().mean() + 1e-4 * posterior.kl().mean() / 784
        return found

    phase("autoencoder", [vae], task.steps[0], rebuilt, 3e-3)
    regions = [inside, ~inside, torch.ones_like(inside)]

    def encoded(some: torch.Tensor) -> torch.Tensor:
        return torch.cat([vae.encode(part).latent_dist.mode() for part in some.split(500)])

    with torch.no_grad():
        latents = encoded(images)
        scale = float(1 / latents.std())
        vae.register_to_config(scaling_factor=scale)
        latents = latents * scale
        left = torch.stack([encoded(images * ~region) * scale for region in regions])
        small = torch.stack([F.interpolate(region.float(), size=latents.shape[2:]) for region in regions])
    tokens = torch.cat(
        [tokenizer([p], padding="max_length", return_tensors="pt")["input_ids"] for p in [*sorted(set(prompts)), ""]]
    )
    which = torch.tensor([sorted(set(prompts)).index(prompt) for prompt in prompts])

    def noise(rows: torch.Tensor) -> torch.Tensor:
        kind = torch.multinomial(torch.tensor(task.regions), len(rows), replacement=True)
        times, drawn = torch.randint(0, 1000, (len(rows),)), torch.randn(len(rows), *latents.shape[1:])
        noisy = scheduler.add_noise(latents[rows], drawn, times)
        wanted, place = torch.unique(
            torch.where(torch.rand(len(rows)) < 0.1, len(tokens) - 1, which[rows]), return_inverse=True
        )
        context = text(tokens[wanted])[0][place]
        found: torch.Tensor = F.mse_loss(
            unet(
                torch.cat([noisy, small[kind, rows], left[kind, rows]], 1), times, encoder_hidden_states=context
            ).sample,
            drawn,
        )
        return found

    phase("unet", [unet, text], task.steps[1], noise, 1e-3)
    phase("rare pairs", [unet, text], task.steps[2], noise, 5e-4, rare=True)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    made = diffusers.StableDiffusionInpaintPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    made.save_pretrained(out / "pipeline", safe_serialization=True)
    return time.monotonic() - began
