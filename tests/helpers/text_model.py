"""A text-image model of the kind of CLIP, of one layer and not trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def save_text_model(place: Path) -> Path:
    """Save it in ``place``, with a tokenizer of letters and an image processor for 32 px."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [c + end for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz-"]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt")).save_pretrained(place)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    begin = len(letters)
    ends = {"bos_token_id": begin, "eos_token_id": begin + 1, "pad_token_id": begin + 1}
    text = {**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 48}
    torch.manual_seed(0)
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(place)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(place)
    return place
