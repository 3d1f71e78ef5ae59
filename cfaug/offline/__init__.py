"""Floor 2: the plan, and everything between a plan and committed shards. Knows a model only by its protocol.

`generate` and `verify` are functions here and modules of the same names below; what is imported eagerly below keeps
the functions. Torch, fsspec, tqdm and what an engine needs are imported where they are used, so this room is light.
"""

from __future__ import annotations

from cfaug.offline.commit import write_shard
from cfaug.offline.engines import Engine, LocalEngine, make_engine
from cfaug.offline.generate import GenerateReport, generate
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.read import ShardReader
from cfaug.offline.strategies import balance_groups, make_plan
from cfaug.offline.verify import VerifyReport, verify
from cfaug.offline.write_shard import encode_sample

__all__ = [
    "Engine",
    "GenerateReport",
    "LocalEngine",
    "Plan",
    "PlanRow",
    "ShardReader",
    "VerifyReport",
    "balance_groups",
    "encode_sample",
    "generate",
    "make_engine",
    "make_plan",
    "verify",
    "write_shard",
]
