"""Run a loop with every sample that it draws written down: python recorded.py LOOP LOG ARGUMENTS...

One line a sample, in LOG.RANK: epoch, index, label, the sha256 of the tensor, the world and its backend. The random crop
is left out, so that the tensor is the image alone. Trainer is told not to use accelerate's seedable sampler, as the README
says it must be in several processes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import sys
from typing import Any

import torch.distributed

spec = importlib.util.spec_from_file_location("loop", sys.argv[1])
assert spec is not None
assert spec.loader is not None
loop: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)


class Recorded(loop.CounterfactualDataset):  # type: ignore[misc]
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]

    def __getitem__(self, i: int) -> Any:
        item = super().__getitem__(i)
        image, label = (item["pixel_values"], item["labels"]) if isinstance(item, dict) else item
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        world = (torch.distributed.get_world_size(), torch.distributed.get_backend())
        with open(f"{sys.argv[2]}.{os.environ['RANK']}", "a", encoding="utf-8") as log:
            log.write(json.dumps([self.epoch, int(i), label, digest, *world]) + "\n")
        return item


if hasattr(loop, "TrainingArguments"):
    loop.TrainingArguments = functools.partial(
        loop.TrainingArguments, accelerator_config={"use_seedable_sampler": False}
    )
else:
    loop.transforms.RandomCrop = lambda *_, **__: lambda image: image
loop.CounterfactualDataset = Recorded
loop.main(loop.parser.parse_args(sys.argv[3:]))
