"""Run a loop with every sample that it draws written down: python recorded.py LOOP LOG ARGUMENTS...

One line a sample, in LOG.RANK: epoch, index, label, the sha256 of the tensor, the world and its backend. The random crop
is left out, so that the tensor is the image alone.
"""

from __future__ import annotations

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
    def __getitem__(self, i: int) -> Any:
        image, label = super().__getitem__(i)
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        world = (torch.distributed.get_world_size(), torch.distributed.get_backend())
        with open(f"{sys.argv[2]}.{os.environ['RANK']}", "a", encoding="utf-8") as log:
            log.write(json.dumps([self.epoch, int(i), label, digest, *world]) + "\n")
        return image, label


loop.CounterfactualDataset = Recorded
loop.transforms.RandomCrop = lambda *_, **__: lambda image: image
loop.main(loop.parser.parse_args(sys.argv[3:]))
