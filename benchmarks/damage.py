"""Damage of a shard, fault by fault: what ours reports, and what other readers deliver without a word.

    python benchmarks/damage.py [--samples 8] [--peers 100]        about three minutes on one core

One row for each kind of fault: truncation at every 512 bytes and at 200 random places, 300 random flips of payload bits,
every byte of every header flipped (one random bit) and zeroed, 500 random flips each in padding, end, index and manifest.
Ours: `verified` by `cfaug verify`, `shard` and `key` named rightly, `altered` samples that the random reader delivered,
`scanned`: refused by the strict scan, which has no manifest to go by. Peers, for a random part of the same faults of the
tar: how often webdataset and Hugging Face datasets `raised`, and what came otherwise without an error: `altered` (a sample
that is not what was written), `lost` (fewer samples) or `same`; `silent` = altered + lost.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

import numpy as np  # noqa: E402
from helpers import damages  # noqa: E402
from rows import cpu, record  # noqa: E402

from cfaug.offline.format import Sample  # noqa: E402

RESULTS = HERE.parent / "results" / "offline.jsonl"
RANDOM_CUTS, RANDOM_FLIPS, SOME = 200, 300, 500


def webdataset_samples(tar: Path, scratch: Path) -> Iterator[Sample]:
    import webdataset

    for found in webdataset.WebDataset([str(tar)], shardshuffle=False).decode("rgb8"):
        yield Sample(found["__key__"], found.get("png"), found.get("json"))


def hf_samples(tar: Path, scratch: Path) -> Iterator[Sample]:
    import datasets

    options = {"split": "train", "streaming": True, "cache_dir": str(scratch)}
    for found in datasets.load_dataset("webdataset", data_files=[str(tar)], **options):
        yield Sample(found["__key__"], np.asarray(found["png"]), found["json"])


PEERS: dict[str, Callable[[Path, Path], Iterator[Sample]]] = {
    "webdataset": webdataset_samples,
    "datasets": hf_samples,
}


def peer_says(peer: str, tar: Path, scratch: Path, truth: list[Sample]) -> str:
    try:
        found = list(PEERS[peer](tar, scratch))
    except Exception:  # however it says so
        return "raised"
    known = {one.key: one for one in truth}
    if any(one.key not in known or not damages.same(one, known[one.key]) for one in found):
        return "altered"
    return "same" if len(found) == len(truth) else "lost"


def measure(
    directory: Path, file: str, kind: str, faults: Iterable[damages.Fault], truth: list[Sample], peers: int
) -> dict[str, Any]:
    """One row: all faults of a kind against ours, `peers` of them against the others."""
    faults, began = list(faults), time.perf_counter()
    is_tar = file == damages.NAME
    ours = Counter[str]()
    for fault in faults:
        ours.update(damages.judge(directory, file, fault, truth, scanning=is_tar))
    row = {
        "what": "damage", "kind": kind, "faults": len(faults), "verified": ours["verify"], "shard": ours["shard"],
        "key": ours["key"], "altered": ours["altered"], "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    if not is_tar:
        return row
    row["scanned"] = ours["scan"]
    chosen = np.random.default_rng(7).permutation(len(faults))[:peers]
    with tempfile.TemporaryDirectory() as scratch:
        for peer in PEERS:
            said = Counter[str]()
            for n, i in enumerate(chosen):
                tar = Path(scratch) / f"{peer}-{n}.tar"
                tar.write_bytes(faults[i].content)
                said[peer_says(peer, tar, Path(scratch), truth[:-1])] += 1
                tar.unlink()
            silent = said["altered"] + said["lost"]
            row[peer] = {"faults": len(chosen), "silent": silent, **said}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--peers", type=int, default=100, help="faults of each kind that other readers get")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    truth = [damages.sample(i) for i in range(options.samples + 1)]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "shards"
        damages.make(directory, options.samples)
        whole, where = (directory / damages.NAME).read_bytes(), damages.regions(directory)
        kinds: dict[str, tuple[str, Iterable[damages.Fault]]] = {
            "truncation": (damages.NAME, damages.truncations(whole, where, rng, RANDOM_CUTS)),
            "payload flips": (damages.NAME, damages.flips(whole, where, "payload", rng, RANDOM_FLIPS)),
            "header flips": (damages.NAME, damages.flips(whole, where, "header", rng)),
            "header zeroed": (damages.NAME, damages.zeroings(whole, where, "header")),
            "padding flips": (damages.NAME, damages.flips(whole, where, "padding", rng, SOME)),
            "end flips": (damages.NAME, damages.flips(whole, where, "end", rng, SOME)),
        }
        for kind, file in (("index flips", damages.INDEX), ("manifest flips", "manifest.jsonl")):
            content = (directory / file).read_bytes()
            line = [damages.Region("line", 0, len(content), None)]
            kinds[kind] = (file, damages.flips(content, line, "line", rng, SOME))
        for kind, (file, faults) in kinds.items():
            found = measure(directory, file, kind, faults, truth, options.peers)
            command = "python benchmarks/damage.py " + " ".join(sys.argv[1:])
            record(options.results, found, samples=options.samples, command=command.strip(), cpu=cpu())


if __name__ == "__main__":
    main()
