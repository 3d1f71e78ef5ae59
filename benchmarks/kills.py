"""SIGKILL at random moments of a generation by two workers: what stays on disk, and whether resuming gives the same bytes.

    python benchmarks/kills.py OUT --kills 200            about half an hour on two cores; one line in OUT/kills.jsonl

A campaign generates one plan again and again. Each launch is a process of its own with two spawned workers; at a random
moment after its first micro-batch either the whole run (the parent) or one worker gets SIGKILL. A run whose worker was
killed goes on by itself; a killed run is launched again in the same directory. The workers of a killed parent notice its end
and end too, but they may finish a step until then. After every launch the benchmark therefore waits until no process of
it is left, and looks at the directory before anything repairs it:

- `unverifiable`: files under a final name that do not have, byte for byte, the content of the uninterrupted run's;
- `not_vouched`: complete shards whose commit file had not been written yet (nobody reads them; the next launch commits them);
- `wrong_manifests`: manifests and commit files that are damaged, or that vouch for something that is not there.

Whenever a plan is finished, every file's sha256 is compared with the uninterrupted run's. `lost` counts shards that were
begun and not committed, per kill; `workers_outlived_s` is the longest time that a worker which had made a batch outlived its
parent, and `files_published_after_the_parent` counts what workers published in such times.
The model is a stand-in (tests/helpers/tiny.py): what is tested is the writing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

from helpers import tiny  # noqa: E402
from helpers.gated import ByPixel, Drawing  # noqa: E402
from rows import cpu, record  # noqa: E402

from cfaug.data.files import PARTIAL  # noqa: E402
from cfaug.offline import Plan, balance_groups, generate, verify  # noqa: E402
from cfaug.offline.read_committed import read_manifest  # noqa: E402
from cfaug.offline.storage import open_storage  # noqa: E402

SHARDS, ROWS, BATCH, WORKERS = 40, 20, 5, 2
PATIENCE = (
    600.0  # seconds that the processes of a launch have to end in; at idle priority an import of torch takes a minute
)


def plan() -> Plan:
    data = tiny.dataset(SHARDS * ROWS // 4)
    return balance_groups(data.table, tiny.schema(), per_image=3, null_fraction=0.25, samples_per_shard=ROWS)


def one_run(out: Path, marks: Path | None, workers: int, gated: bool = False) -> None:
    kind = Drawing if gated else tiny.TinyModel
    model = kind(tiny.schema(), mark=None if marks is None else str(marks), pause=0.0 if marks is None else 0.02)
    generate(
        model,
        tiny.dataset(SHARDS * ROWS // 4),
        plan(),
        out,
        workers=workers,
        batch_size=BATCH,
        progress=False,
        retries=50,
        gate=ByPixel() if gated else None,
    )


class Campaign:
    """Kills, looks, resumes, compares; the counts are its result."""

    def __init__(self, out: Path, seed: int, gated: bool) -> None:
        self.out, self.random, self.gated = out, random.Random(seed), gated
        self.run, self.marks, self.reference = out / "run", out / "marks", out / "reference"
        for folder in (self.run, self.marks, self.reference):
            shutil.rmtree(folder, ignore_errors=True)
        one_run(self.reference, None, 0, gated)
        self.truth = tiny.digests(self.reference)
        self.first = {plan().rows_of(number)[0].key for number in plan().shards()}
        self.kills = {"parent": 0, "worker": 0}
        self.found = dict.fromkeys(("unverifiable", "not_vouched", "wrong_manifests", "different_shards"), 0)
        self.compared = self.finished = self.lost_most = self.lost = self.launches = 0
        self.outlived, self.published_late = 0.0, 0

    def launch(self, most: int) -> None:
        """One process, killed or run to its end; at most `most` kills."""
        self.launches += 1
        shutil.rmtree(self.marks, ignore_errors=True)
        self.marks.mkdir(parents=True)
        before = len(self._committed())
        command = [sys.executable, str(HERE), str(self.run), "--child", str(self.marks), *(["--gate"] * self.gated)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        workers = self._drive(process, most)
        if process.returncode != 0 and process.returncode != -signal.SIGKILL:
            raise SystemExit(f"a launch ended with {process.returncode}: {process.stderr and process.stderr.read()}")
        killed = process.returncode == -signal.SIGKILL
        self._wait_until_gone(process.pid, killed)
        self._look()
        begun = sum(name.partition("-")[2].partition("~")[0] in self.first for name in os.listdir(self.marks))
        lost = begun - (len(self._committed()) - before)
        self.lost += lost
        self.lost_most = max(self.lost_most, lost - workers if killed else 0)
        if lost > workers + (WORKERS if killed else 0):
            raise SystemExit(f"{lost} shards of work were lost by {workers} killed workers, parent killed: {killed}")
        if not killed:
            self._compare()

    def _drive(self, process: subprocess.Popen[str], most: int) -> int:
        """Kill at random moments until the process ends; the number of workers killed."""
        workers = 0
        while process.poll() is None:
            if not any(self.marks.iterdir()):
                time.sleep(0.01)
                continue
            wait = time.monotonic() + self.random.uniform(0, 1.2)
            while process.poll() is None and time.monotonic() < wait:
                time.sleep(0.001)
            if process.poll() is not None or workers >= most:
                process.wait()
                break
            if self.random.random() < 0.5:
                process.kill()
                process.wait()
                self.kills["parent"] += 1
                break
            alive = [pid for pid in self._pids() if _alive(pid)]
            if alive:
                os.kill(self.random.choice(alive), signal.SIGKILL)
                self.kills["worker"] += 1
                workers += 1
        process.wait()
        return workers

    def _wait_until_gone(self, session: int, killed: bool) -> None:
        """A worker that had not made a batch yet has no mark, so the processes are found by their session."""
        ended, before = time.monotonic(), self._names()
        while left := {pid for pid in _processes() if _alive(pid, session)}:
            seconds = time.monotonic() - ended
            if seconds > PATIENCE:
                raise SystemExit(f"expected the workers to end with their parent, got {left} after {PATIENCE:.0f} s")
            if killed and left & self._pids():  # a worker that is still importing notices nothing and writes nothing
                self.outlived = max(self.outlived, seconds)
            time.sleep(0.002)
        if killed:
            self.published_late += len(self._names() - before)

    def _names(self) -> set[str]:
        """The final names in the directory of the shards."""
        return {name for name in open_storage(self.run / "shards").sizes() if not name.endswith(PARTIAL)}

    def _pids(self) -> set[int]:
        return {int(name.split("-")[0]) for name in os.listdir(self.marks)}

    def _committed(self) -> set[str]:
        return {row.name for row in read_manifest(open_storage(self.run / "shards"))}

    def _look(self) -> None:
        """What a killed run left, before the next one repairs it."""
        shards = self.run / "shards"
        try:
            vouched = self._committed()
        except Exception:
            self.found["wrong_manifests"] += 1
            return
        for name, digest in (tiny.digests(self.run) if shards.exists() else {}).items():
            if name.startswith("cf-") and not name.endswith(".partial"):
                self.found["unverifiable"] += digest != self.truth.get(name)
                self.found["not_vouched"] += name.endswith(".tar") and name not in vouched
        self.found["wrong_manifests"] += any(not (shards / name).exists() for name in vouched)

    def _compare(self) -> None:
        ours = tiny.digests(self.run)
        self.found["different_shards"] += sum(ours.get(name) != digest for name, digest in self.truth.items())
        self.found["unverifiable"] += not verify(self.run, plan()).ok
        self.compared += len(self.truth)
        self.finished += 1
        shutil.rmtree(self.run)

    def through(self, kills: int) -> None:
        while sum(self.kills.values()) < kills:
            self.launch(kills - sum(self.kills.values()))
        while self.run.exists():  # the last one is finished in peace
            self.launch(0)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _alive(pid: int, session: int | None = None) -> bool:
    """Whether the process (of that session) runs: one that has ended and waits to be reaped does not."""
    try:
        state, _, _, found = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:4]
    except OSError:
        return False
    return state not in "ZX" and session in (None, int(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--gate", action="store_true", help="with a gate that rejects half of the images, which are drawn again"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        one_run(given.out, given.child, WORKERS, given.gate)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    campaign = Campaign(given.out, given.seed, given.gate)
    campaign.through(given.kills)
    found = {
        "what": "kills", **campaign.kills, **campaign.found,
        "launches": campaign.launches, "plans_finished": campaign.finished, "files_compared": campaign.compared,
        "shards_lost": campaign.lost, "lost_at_most_by_a_kill_of_the_run": campaign.lost_most,
        "workers_outlived_s": round(campaign.outlived, 3), "files_published_after_the_parent": campaign.published_late,
        "workers": WORKERS, **({"gate": True} if given.gate else {}),
    }  # fmt: skip
    command = f"python benchmarks/kills.py OUT --kills {given.kills} --seed {given.seed}{' --gate' * given.gate}"
    record(given.out / "kills.jsonl", found, command=command, cpu=cpu(), seconds=round(time.monotonic() - started))
    for folder in ("run", "marks", "reference"):
        shutil.rmtree(given.out / folder, ignore_errors=True)
    bad = {name: count for name, count in campaign.found.items() if count and name != "not_vouched"}
    if bad:
        raise SystemExit(f"expected nothing wrong, found {json.dumps(bad)}")


if __name__ == "__main__":
    main()
