"""Diffusers pipelines of real classes, tiny and not trained, made from configuration without any network.

All make images of 32 px, from sources of 32 px; Flux2KleinPipeline refuses sources of less than 64. The autoencoders
halve an image, but for Qwen-Image's, which shrinks it by 16: its pipelines blow every source up to a megapixel.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
AUTOENCODER = {**BLOCKS, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
"""Settings of an AutoencoderKL, and of one of FLUX.2, that halves an image."""


def save_pipeline(name: str, place: Path, seed: int = 0) -> Path:
    """Save the pipeline of the class ``name`` in ``place``, with weights drawn from ``seed``."""
    import diffusers
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _MAKERS[name]()
    getattr(diffusers, name)(**parts).save_pretrained(place, safe_serialization=True)
    return place


def loaded(place: Path) -> Any:
    """The pipeline in ``place``, from that directory alone."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(place, local_files_only=True, use_safetensors=True)


def _louder(model: Any, factor: float) -> Any:
    """``model`` with all matrices times ``factor``: as drawn, its answer hardly depends on text and images."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(factor)
    return model


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens = [c + end for end in ("", "</w>") for c in string.ascii_lowercase + string.digits + string.punctuation]
    merges = [("t", "h"), ("th", "e</w>")]
    tokens += [*("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=77)


def _clip_encoder(tokenizer: Any, projected: bool = False) -> Any:
    """Two layers of 8; with a projection to 8 where SDXL's second encoder has one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=8, pad_token_id=1, **small, **ends)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _autoencoder(**more: Any) -> Any:
    """Scaled so that the latents of an image have a variance of about one, as those of a trained autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**AUTOENCODER, latent_channels=4, scaling_factor=5.0, force_upcast=False, **more)


def _unet(channels: int, **more: Any) -> Any:
    """Attention at each of three resolutions: LEDITS++ reads the maps at a quarter of the latent size."""
    from diffusers import UNet2DConditionModel

    settings = {
        "in_channels": channels, "sample_size": 16, "block_out_channels": (8, 8, 16), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8,
    }  # fmt: skip
    return _louder(UNet2DConditionModel(**settings | more), 2)


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def _sde_dpm() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="sde-dpmsolver++",
        solver_order=2, steps_offset=1,
    )  # fmt: skip


def _stable_diffusion(channels: int = 4, scheduler: Callable[[], Any] = _ddim) -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    return {
        "vae": _autoencoder(),
        "text_encoder": _clip_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": _unet(channels),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _stable_diffusion_xl(channels: int = 4, scheduler: Callable[[], Any] = _ddim) -> dict[str, Any]:
    tokenizer = _clip_tokenizer()
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 8}
    return {
        "vae": _autoencoder(),
        "text_encoder": _clip_encoder(tokenizer),
        "text_encoder_2": _clip_encoder(tokenizer, projected=True),
        "tokenizer": tokenizer,
        "tokenizer_2": _clip_tokenizer(),
        "unet": _unet(channels, cross_attention_dim=16, addition_embed_type="text_time", **sizes),
        "scheduler": scheduler(),
        "add_watermarker": False,
    }


def _flow_matching() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _qwen_tokenizer() -> Any:
    """Bytes and two merges, the special tokens of the texts and of the images, and a template of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    merges = [("t", "h"), ("th", "e")]
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>"]
    tokenizer = Qwen2TokenizerFast({token: i for i, token in enumerate(tokens)}, merges, model_max_length=2048)
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _flux2_klein() -> dict[str, Any]:
    """The encoder of texts has 28 layers, since the hidden states 9, 18 and 27 are read."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=3 * 8, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(**AUTOENCODER, latent_channels=4)
    vae.bn.running_var.fill_(0.04)  # about that of the latents of an image
    return {
        "vae": vae,
        "text_encoder": Qwen3ForCausalLM(text),
        "tokenizer": tokenizer,
        "transformer": _louder(transformer, 3),
        "scheduler": _flow_matching(),
    }


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581the", -3.0)]
    pieces += [(c, -4.0) for c in string.ascii_letters + string.digits + string.punctuation]
    return T5TokenizerFast(pieces, extra_ids=0, model_max_length=512)


def _flux_kontext() -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    text = T5Config(vocab_size=len(tokenizer_2), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    return {
        "vae": _autoencoder(shift_factor=0.1),
        "text_encoder": _clip_encoder(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": T5EncoderModel(text),
        "tokenizer_2": tokenizer_2,
        "transformer": _louder(transformer, 3),
        "scheduler": _flow_matching(),
    }


def _qwen_image_edit() -> dict[str, Any]:
    """The encoder of texts sees an image as 2 x 2 patches."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(size=pixels), tokenizer, Qwen2VLVideoProcessor(size=pixels))
    small = {"hidden_size": 8, "intermediate_size": 8}
    special = {
        "image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }  # fmt: skip
    ids = {key: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for key, token in special.items()}
    text = {
        **small, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
    }  # fmt: skip
    vision = {**small, "depth": 1, "num_heads": 2, "out_hidden_size": 8, "fullatt_block_indexes": [0]}
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * 5, num_res_blocks=0, temperal_downsample=[False, False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {
        "vae": _louder(vae, 2),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        ),
        "tokenizer": tokenizer,
        "processor": processor,
        "transformer": _louder(transformer, 3),
        "scheduler": _flow_matching(),
    }


_MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionImg2ImgPipeline": _stable_diffusion,
    "StableDiffusionInpaintPipeline": lambda: _stable_diffusion(9),
    "StableDiffusionInstructPix2PixPipeline": lambda: _stable_diffusion(8),
    "LEditsPPPipelineStableDiffusion": lambda: _stable_diffusion(scheduler=_sde_dpm),
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusionXLImg2ImgPipeline": _stable_diffusion_xl,
    "StableDiffusionXLInpaintPipeline": lambda: _stable_diffusion_xl(9),
    "LEditsPPPipelineStableDiffusionXL": lambda: _stable_diffusion_xl(scheduler=_sde_dpm),
    "Flux2KleinPipeline": _flux2_klein,
    "Flux2KleinInpaintPipeline": _flux2_klein,
    "FluxKontextPipeline": _flux_kontext,
    "QwenImageEditPipeline": _qwen_image_edit,
    "QwenImageEditPlusPipeline": _qwen_image_edit,
}
PIPELINES = tuple(_MAKERS)
