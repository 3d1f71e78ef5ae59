"""What one billion 512 px counterfactuals take, from the costs measured in results/offline.jsonl; prints the table of scale.md.

    python benchmarks/scale.py [--images 1000000000] [--per-shard 4000]

Nothing is measured here. Rates of accelerators are assumptions and stand beside what they give; prices are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results" / "offline.jsonl"
SUSTAINED = 100e12  # FLOP/s: about a third of what a current data-centre accelerator states for bfloat16


def latest(what: str, **where: Any) -> dict[str, Any]:
    """The last row of a kind."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    found = [row for row in rows if row.get("what") == what and all(row.get(k) == v for k, v in where.items())]
    return dict(found[-1])


def size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--per-shard", type=int, default=4000)
    given = parser.parse_args()
    n, shards = given.images, given.images // given.per_shard
    flops, writing = latest("flops"), latest("writing", size=512, images="photograph")
    reading = latest("reading", pixels=512, image="png")
    plan, manifest = latest("plan"), latest("manifest")
    big = flops["network_320x640x1280_gflop"]
    codec = flops["encode_gflop"] + flops["decode_gflop"]
    exact, distilled = codec + flops["evaluations"]["reversible, 3 steps"] * big, codec + big
    tar = given.per_shard * (reading["bytes_per_sample"] + 2500)
    index = 330 * n
    lines = [
        ("arithmetic an image, 21 evaluations / distilled", f"{exact / 1e3:.1f} / {distilled / 1e3:.1f} TFLOP"),
        (
            f"accelerator-hours at {SUSTAINED / 1e12:.0f} TFLOP/s sustained",
            f"{n * exact * 1e9 / SUSTAINED / 3600:,.0f} / {n * distilled * 1e9 / SUSTAINED / 3600:,.0f}",
        ),
        ("core-hours to encode PNG", f"{n * writing['encode_us'] / 1e6 / 3600:,.0f}"),
        ("core-hours to check, hash, write beside it", f"{n * max(writing['beside_us_processor'], 0) / 1e6 / 3600:,.0f}"),
        ("shards, each", f"{shards:,}, {size(tar)}"),
        ("images", size(shards * tar)),
        ("indices", size(index)),
        ("plan", f"{size(n * plan['bytes_per_row'])} as {n // 100_000_000} plans, {n / plan['rows_per_second'] / 60:.0f} minutes of one core"),
        ("manifest", f"{size(shards * manifest['bytes_a_row'])}, in a reader's memory {size(shards * manifest['reader_bytes_a_row'])}"),
        ("puts: tar, index, commit of each shard", f"{3 * shards:,}"),
        ("gets of RUN.json, one a commit", f"{shards:,}"),
        ("list requests to resume (1 000 names each)", f"{3 * shards // 1000:,}"),
        ("core-hours of cfaug verify", f"{n * reading['microseconds']['verify'] / 1e6 / 3600:,.0f}"),
    ]  # fmt: skip
    print(f"| {n:,} images of 512 px | |\n|---|---|")
    for name, value in lines:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
