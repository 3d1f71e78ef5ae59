"""Every fault at every request of a run onto S3, once and lastingly: survived, or refused in one line; never half there.

    python benchmarks/s3_faults.py                  # moto's server behind a proxy; about four minutes on one core

A run is: claim, commit two shards, publish, read a sample back. What must hold, whatever happens: what the manifest lists
is whole and is what an undisturbed run makes; no upload in parts is left; when the fault has passed, the same run finishes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]

from helpers import committing  # noqa: E402
from helpers.committing import IDENTITY, commit, name  # noqa: E402
from helpers.faults import BUCKET, FaultProxy, s3_server  # noqa: E402
from rows import cpu, record  # noqa: E402

from cfaug.errors import CfaugError  # noqa: E402
from cfaug.offline import ShardReader  # noqa: E402
from cfaug.offline.commit import Destination, open_destination  # noqa: E402

ROWS = Path(__file__).parent / "results" / "offline.jsonl"
PLACES = {  # what a run asks of the store: method and a part of the path
    "claim": ("PUT", "RUN.json"), "tar": ("PUT", f"shards/{name(1)}"), "index": ("PUT", "000001.index"),
    "commit": ("PUT", "commits/cf-train-000001"), "manifest": ("PUT", "manifest.jsonl"), "card": ("PUT", "README"),
    "list": ("GET", "list-type"), "look": ("HEAD", ""), "read": ("GET", name(0)), "rows": ("GET", "commits/"),
}  # fmt: skip
KINDS = ("500", "503", "403", "reset-put", "lost-answer", "reset-get", "slow")
COUNTS = {"once": 1, "lasting": 100_000}


def run(destination: Destination) -> None:
    with destination.session(IDENTITY):
        for number in range(2):
            if name(number) not in destination.intact():
                commit(destination, number)
        destination.publish([name(0), name(1)], {"README.md": b"card"})
    reader = ShardReader(destination.storage.url)
    for i in range(len(reader)):
        reader.sample(i)


def check(destination: Destination, truth: dict[str, bytes], proxy: FaultProxy) -> list[str]:
    """What is wrong with what an interrupted run left, as a reader sees it."""
    rows = destination.committed()
    storage = destination.storage
    wrong = [n for row in rows.values() for n in (row.name, row.index) if storage.read(n) != truth[n]]
    return wrong + [f"{len(proxy.uploads())} unfinished uploads"] * bool(proxy.uploads())


def scenario(proxy: FaultProxy, url: str, kind: str, place: str, times: int, truth: dict[str, bytes]) -> str:
    destination = open_destination(url)
    proxy.calm()
    proxy.fail(kind, *PLACES[place], times=times, seconds=0.3)
    try:
        run(destination)
        said = "survived" if proxy.struck else "not reached"
    except CfaugError as error:
        said = "refused" if "\n" not in str(error) else f"more than one line: {error!r}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    proxy.calm()
    wrong = check(destination, truth, proxy)
    run(destination)
    wrong += check(destination, truth, proxy)
    return said if not wrong else f"{said}, but {wrong}"


def killed(proxy: FaultProxy, url: str, place: str, truth: dict[str, bytes]) -> str:
    """SIGKILL of the process while half of a body is on its way."""
    destination = open_destination(url)
    proxy.calm()
    proxy.fail("hang", *PLACES[place], seconds=1)
    process = committing.started(f"{url}/shards", [0, 1])
    reached = proxy.hanging.wait(timeout=60)
    process.kill()
    process.wait()
    wrong = check(destination, truth, proxy)
    proxy.calm()
    run(destination)
    wrong += check(destination, truth, proxy)
    return ("killed" if reached else "not reached") + (f", but {wrong}" if wrong else "")


def main() -> None:
    began = time.perf_counter()
    memory = open_destination("memory://truth")
    run(memory)
    truth = {n: memory.storage.read(n) for n in memory.storage.sizes()}
    outcomes: dict[str, dict[str, str]] = {}
    with s3_server(attempts=2) as proxy:
        for count, times in COUNTS.items():
            for kind in KINDS:
                for place in PLACES:
                    if (kind, count) == ("slow", "lasting"):
                        continue  # slow is not a failure: once says it
                    url = f"s3://{BUCKET}/{kind}-{place}-{count}"
                    outcomes.setdefault(f"{kind} {count}", {})[place] = scenario(proxy, url, kind, place, times, truth)
                print(f"{kind} {count}: {outcomes.get(f'{kind} {count}')}", flush=True)
        for place in ("claim", "tar", "index", "commit"):
            outcomes.setdefault("SIGKILL", {})[place] = killed(proxy, f"s3://{BUCKET}/kill-{place}", place, truth)
        uploads = len(proxy.uploads())
    counts = Counter(said for places in outcomes.values() for said in places.values())
    record(
        ROWS,
        {"what": "s3_faults", "scenarios": counts.total(), **counts, "unfinished_uploads": uploads},
        outcomes=outcomes, attempts=2, seconds=round(time.perf_counter() - began), cpu=cpu(),
        command="python benchmarks/s3_faults.py",
    )  # fmt: skip


if __name__ == "__main__":
    main()
