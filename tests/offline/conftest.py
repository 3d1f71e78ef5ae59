"""No network for Hugging Face, and one thread: the machines that run this are small."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is imported
torch.set_num_threads(1)
