"""Low-rank adapters of Stable Diffusion (Hu et al., 2022): of the user's images, and of a single image before it is edited.

    fit     eps-loss over training images and their prompts, on adapters of the U-Net; with ``tokens`` also on one new token per value
    DAC     1. U-Net adapter u:   min  |eps - eps_u(x_t, t, P)|        P: the prompt of the image as it is; u holds what P does not say
            2. text adapter v:    min  |eps - eps_u(x_t, t, P'; v)|    P': the new prompt; v holds what undoes the edit
            3. edit under P' with u and -v                             so the change that v undid is made

The doubly abductive scheme is Song et al.'s (2024, Doubly Abductive Counterfactual Inference); it takes as long as a training for every
image, so it is for small sets and as a measure of what plain inversion loses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cfaug.data import AttributeDataset
from cfaug.decode.diffusion.training import optimise, seed_of
from cfaug.decode.editors import backends, open_pipeline
from cfaug.decode.editors.backends import Edit, Floats, Traits
from cfaug.decode.editors.words import Words
from cfaug.decode.mechanism import FitReport
from cfaug.decoder_config import DecoderConfig
from cfaug.editor_config import EditorConfig
from cfaug.errors import UsageError

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
_UNET, _TOKEN = "unet.", "token."


def check_class(name: str) -> None:
    """UsageError for a pipeline class whose adapters are not trained here."""
    if not name.startswith("StableDiffusion") or "XL" in name or "Pix2Pix" in name:
        raise UsageError(
            f"decoder.editor: adapters are trained for Stable Diffusion 1.x classes, got {name}; train them with the pipeline's own scripts and "
            "save the pipeline with them, then set lora.steps: 0 and abduction.steps: 0"
        )


# -- of the data set -----------------------------------------------------------------------------------------------------


def train(
    pipe: Any, words: Words, editor: EditorConfig, size: tuple[int, int], dataset: AttributeDataset, seed: int, progress: bool,
    checkpoint: Path | None,
) -> tuple[dict[str, torch.Tensor], FitReport]:  # fmt: skip
    """Adapters of the data set's images, at ``size``, under their prompts, and what training did; resumed from ``checkpoint`` after a kill."""
    lora, table = editor.lora, words.schema.canonical(dataset.table)
    prompts = words.prompts(table, [frozenset(words.parents)] * len(table))
    with _trainable(pipe):
        tokens = _new_tokens(pipe, words.tokens()) if lora.tokens else {}
        _add(pipe.unet, lora.rank, ATTENTION, seed)
        module = nn.ParameterList([p for p in pipe.unet.parameters() if p.requires_grad])
        if tokens:
            module.append(pipe.text_encoder.get_input_embeddings().more)

        def loss(_: nn.Module, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            images = [open_pipeline.resized(dataset.image(int(i)), size) for i in rows]
            with torch.no_grad():
                latents = backends.latents_of(pipe, images)
            return _eps_loss(pipe, latents, _embedded(pipe, [prompts[int(i)] for i in rows]), generator)

        config = DecoderConfig(
            max_steps=lora.steps, batch_size=lora.batch_size, learning_rate=lora.learning_rate,
            checkpoint_seconds=lora.checkpoint_seconds, device=str(pipe.device),
        )  # fmt: skip
        report = optimise(
            module, loss, torch.ones(len(dataset)), config, seed, checkpoint=checkpoint, progress=progress,
            identity=_identity(dataset, prompts, size) if checkpoint else "",
        )  # fmt: skip
    from peft.utils import get_peft_model_state_dict

    found = {_UNET + name: value.detach().cpu() for name, value in get_peft_model_state_dict(pipe.unet).items()}
    if tokens:
        rows = pipe.text_encoder.get_input_embeddings().more.detach().cpu()
        found |= {f"{_TOKEN}{name}": rows[i].clone() for i, name in enumerate(tokens)}
    return found, report


def _identity(dataset: AttributeDataset, prompts: Sequence[str], size: tuple[int, int]) -> str:
    """A digest of what is learned: every prompt and every image, at the working size."""
    content = hashlib.sha256(json.dumps([list(prompts), list(size)]).encode())
    for i in range(len(dataset)):
        content.update(dataset.image(i).tobytes())
    return content.hexdigest()


def put_in(pipe: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put trained adapters and tokens into a pipeline that has none."""
    from peft.utils import set_peft_model_state_dict

    own = {name.removeprefix(_UNET): value for name, value in weights.items() if name.startswith(_UNET)}
    rank = min(value.shape[0] for name, value in own.items() if ".lora_A." in name)
    if tokens := {name.removeprefix(_TOKEN): value for name, value in weights.items() if name.startswith(_TOKEN)}:
        _new_tokens(pipe, dict.fromkeys(tokens, ""))
        embedding = pipe.text_encoder.get_input_embeddings()
        embedding.more = nn.Parameter(torch.stack(list(tokens.values())).to(embedding.more), requires_grad=False)
    _add(pipe.unet, rank, ATTENTION, 0)
    set_peft_model_state_dict(pipe.unet, own)
    pipe.unet.requires_grad_(False)


class _Embedding(nn.Module):
    """A frozen table of token embeddings, and rows of new tokens behind it."""

    def __init__(self, base: nn.Embedding, more: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.weight.detach(), persistent=False)
        self.more = nn.Parameter(more)

    @property
    def weight(self) -> torch.Tensor:
        """(V + T, D)."""
        return torch.cat([self.base, self.more.to(self.base.dtype)])  # type: ignore[list-item, arg-type]

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings of token codes."""
        return F.embedding(codes, self.weight)


def _new_tokens(pipe: Any, meanings: Mapping[str, str]) -> dict[str, str]:
    """Add tokens, each of which means at first what its words do."""
    base = pipe.text_encoder.get_input_embeddings()
    codes = {name: pipe.tokenizer(words, add_special_tokens=False)["input_ids"] for name, words in meanings.items()}
    pipe.tokenizer.add_tokens(list(meanings))
    rows = [base.weight[codes[name]].mean(0) if codes[name] else base.weight.mean(0) for name in meanings]
    pipe.text_encoder.set_input_embeddings(_Embedding(base, torch.stack(rows).detach().clone()))
    return dict(meanings)


# -- of a single image -------------------------------------------------------------------------------------------------------


def doubly_abducted(pipe: Any, traits: Traits, edit: Edit, config: EditorConfig) -> Floats:
    """One edit by the doubly abductive scheme: (1, H, W, 3) in [0, 1]. The pipeline is left as it was."""
    own = config.abduction
    with torch.inference_mode(False), torch.enable_grad(), _trainable(pipe):
        with torch.no_grad():
            latents = backends.latents_of(pipe, [edit.image])
        try:
            _add(pipe.unet, own.rank, ATTENTION, edit.seed)
            with torch.no_grad():
                factual = _embedded(pipe, [edit.factual])
            _fit_one(pipe, pipe.unet, latents, lambda: factual, own.steps, own.learning_rate, edit.seed)
            if own.text_steps:
                _add(pipe.text_encoder, own.rank, TEXT, edit.seed)
                _fit_one(pipe, pipe.text_encoder, latents, lambda: _embedded(pipe, [edit.prompt]), own.text_steps, own.learning_rate, edit.seed + 1)  # fmt: skip
                for part in pipe.text_encoder.modules():
                    if isinstance(scaling := getattr(part, "scaling", None), dict):
                        scaling.update({name: -own.strength * value for name, value in scaling.items()})
            with torch.no_grad():
                return backends.run(pipe, traits, [edit], config)
        finally:
            _remove(pipe.unet)
            _remove(pipe.text_encoder)


def _fit_one(pipe: Any, part: Any, latents: torch.Tensor, embedded: Any, steps: int, rate: float, seed: int) -> None:
    own = [parameter for name, parameter in part.named_parameters() if "lora_" in name]
    for parameter in own:
        parameter.requires_grad_(True)
    optimiser, generator = torch.optim.AdamW(own, lr=rate), torch.Generator()
    for step in range(steps):
        loss = _eps_loss(pipe, latents, embedded(), generator.manual_seed(seed_of(seed, step)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for parameter in own:
        parameter.requires_grad_(False)


# -- what both need ----------------------------------------------------------------------------------------------------------


@contextmanager
def _trainable(pipe: Any) -> Iterator[None]:
    """Nothing of the pipeline is trained but what is added; the caller's random stream is put back."""
    with torch.random.fork_rng(devices=[]):
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False)
        yield


def _add(part: Any, rank: int, where: Sequence[str], seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            'decoder.editor: adapters need the package peft, which is not installed; pip install "cfaug[editors]"'
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed))
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(where)), part)


def _remove(part: Any) -> None:
    """Take the adapters out again; what they were put around is as it was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(part.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, own = name.rpartition(".")
            setattr(part.get_submodule(parent), own, module.get_base_layer())
    part.__dict__.pop("peft_config", None)


def _embedded(pipe: Any, prompts: Sequence[str]) -> torch.Tensor:
    tokens = pipe.tokenizer(
        list(prompts), padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )  # fmt: skip
    found: torch.Tensor = pipe.text_encoder(tokens["input_ids"].to(pipe.device))[0]
    return found


def _eps_loss(pipe: Any, latents: torch.Tensor, embedded: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The loss that the U-Net was trained with, noise or velocity, at one random time for each image."""
    scheduler, n = pipe.scheduler, len(latents)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (n,), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = scheduler.add_noise(latents, noise, times)
    if pipe.unet.config.in_channels > latents.shape[1]:  # in-painting: everything is to be drawn
        whole = torch.ones_like(latents[:, :1])
        with torch.no_grad():
            sides = [side * pipe.vae_scale_factor for side in latents.shape[2:]]
            grey = pipe.vae.encode(torch.zeros(1, 3, *sides).to(latents)).latent_dist.mode()
        noisy = torch.cat([noisy, whole, (grey * pipe.vae.config.scaling_factor).expand_as(latents)], 1)
    said = pipe.unet(noisy, times, encoder_hidden_states=embedded).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    return F.mse_loss(said.float(), (scheduler.get_velocity(latents, noise, times) if velocity else noise).float())
