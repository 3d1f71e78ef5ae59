"""The training loop: exact resuming after a kill, divergence, early stopping, memory, devices, several processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from cfaug.autocast import autocast, has_bfloat16
from cfaug.config import DecoderConfig
from cfaug.decode import FitReport
from cfaug.decode.diffusion import distributed as processes
from cfaug.decode.diffusion import training
from cfaug.decode.diffusion.flow_loss import train_velocity
from cfaug.decode.diffusion.network import VelocityNet
from cfaug.decode.diffusion.training import budget_seconds, optimise, seed_of
from cfaug.errors import CfaugError, ShardError, UsageError

REPO = Path(__file__).resolve().parents[2]
CONFIG = DecoderConfig(batch_size=8, max_steps=12, checkpoint_seconds=0, bf16=False)
DATA = torch.randn((40, 3, 8, 8), generator=torch.Generator().manual_seed(7))
EVEN = torch.ones(40, dtype=torch.float64)


def network() -> nn.Module:
    """Convolutions in channels_last and dropout: memory layout and the global stream matter for the last bit."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(16, 3, 3, padding=1))
    return net.to(memory_format=torch.channels_last)


def denoise(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    x = DATA[batch]
    return F.mse_loss(module(x + processes.own_rows(torch.randn, x.shape, generator)), x)


def train(net: nn.Module, directory: Path | None = None, loss: training.Loss = denoise, **settings: Any) -> FitReport:
    options: dict[str, Any] = {key: settings.pop(key) for key in ("score", "identity", "seed") if key in settings}
    config = dataclasses.replace(CONFIG, **settings)
    return optimise(net, loss, EVEN, config, options.pop("seed", 0), checkpoint=directory, progress=False, **options)


def failing(at: int, error: Callable[[torch.Tensor], torch.Tensor]) -> training.Loss:
    """The loss of :func:`denoise`, with something done to it in the call of this number."""
    calls = iter(range(1, 10**6))

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        value = denoise(module, batch, generator)
        return error(value) if next(calls) == at else value

    return loss


def killed(value: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def begun(directory: Path, steps: int = 2, **settings: Any) -> Path:
    """A checkpoint of a training that was interrupted after so many steps."""
    with pytest.raises(KeyboardInterrupt):
        train(network(), directory, failing(steps + 1, killed), **settings)
    return directory


def copied(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items()}


def same(first: nn.Module | dict[str, torch.Tensor], second: nn.Module | dict[str, torch.Tensor]) -> bool:
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_it_leaves_averaged_weights_and_moves_no_stream() -> None:
    before, raw, averages = torch.get_rng_state(), [], []
    net, plain = network(), network()

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert module.training
        raw.append(copied(module)["0.weight"])
        return denoise(module, batch, generator)

    def score() -> float:
        assert not net.training
        torch.rand(3)
        averages.append(copied(net)["0.weight"])
        return len(averages)

    report = train(net, loss=loss, max_steps=3, validate_every=1, score=score)
    train(plain, max_steps=3)  # validating does not change what is trained
    assert (report.steps, report.images, report.resumed, report.stopped) == (3, 40, 0, "budget")
    torch.testing.assert_close(averages[0], raw[1])
    torch.testing.assert_close(averages[1], averages[0] * 2 / 11 + raw[2] * 9 / 11)
    assert torch.equal(plain.state_dict()["0.weight"], averages[2])
    assert not plain.training
    assert torch.equal(torch.get_rng_state(), before)
    assert FitReport(**json.loads(json.dumps(dataclasses.asdict(report)))) == report


def test_the_seed_alone_decides_the_network() -> None:
    first, second, third = network(), network(), network()
    train(first), train(second), train(third, seed=256)  # torch alone would take 256 << 24 for 0
    assert same(first, second)
    assert not same(first, third)
    assert len({seed_of(seed, step) for seed in (0, 1, 2**40) for step in range(1000)}) == 3000


def test_the_default_budget_follows_the_images() -> None:
    assert budget_seconds(2_000) == pytest.approx(180)
    assert budget_seconds(20_000) == pytest.approx(1500)
    assert budget_seconds(10**7) == 1500
    assert all(60 <= budget_seconds(n) <= 180 for n in (0, 1, 100, 1_999))


# -- resuming ----------------------------------------------------------------------------------------------------------


def told(net: nn.Module) -> dict[str, Any]:
    """Settings with which everything that a checkpoint keeps matters: autocast, scores, and a score that draws."""
    return {"bf16": True, "validate_every": 4, "score": lambda: float(net[0].weight.sum()) + float(torch.rand(()))}  # type: ignore[index, operator, arg-type]


def sigkill(*_: Any) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def killed_at_step_seven(folder: Path) -> None:
    net = network()
    train(net, folder, failing(7, sigkill), **told(net))


def killed_in_a_write(folder: Path) -> None:
    whole, calls, net = os.replace, iter(range(1, 100)), network()
    os.replace = lambda *a: sigkill() if next(calls) == 5 else whole(*a)  # type: ignore[assignment]
    train(net, folder, **told(net))


@pytest.mark.parametrize("kill", [killed_at_step_seven, killed_in_a_write])
def test_a_killed_training_ends_in_the_same_bits(tmp_path: Path, kill: Callable[[Path], None]) -> None:
    whole, again = network(), network()
    truth = train(whole, **told(whole))
    child = os.fork()
    if child == 0:
        try:
            kill(tmp_path)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    report = train(again, tmp_path, **told(again))
    assert report.resumed == 1
    assert (report.steps, report.loss, report.scores) == (truth.steps, truth.loss, truth.scores)
    assert same(again, whole)
    (tmp_path / "training.safetensors").unlink()
    assert not list(tmp_path.iterdir())  # what a killed writer left half done is gone


def test_the_velocity_network_resumes_exactly(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=6, bf16=True)

    def run(directory: Path | None, kill: int | None = None) -> VelocityNet:
        torch.manual_seed(0)
        net, steps = VelocityNet(3, 4, 0, 1, [8, 16]), iter(range(1, 100))

        def views(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if len(rows) == config.batch_size and next(steps) == kill:
                raise KeyboardInterrupt
            return DATA[rows], DATA[rows, :0]

        blocks = [torch.tensor([0, 1]), torch.tensor([2, 3])]
        train_velocity(net, views, torch.ones(40, 4), EVEN, config, blocks, 0, False, checkpoint=directory)
        return net

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, kill=4)
    assert same(run(tmp_path), run(None))


def test_seconds_of_earlier_runs_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # every look at the clock takes a second
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    budget = {"max_steps": None, "seconds": 40.0}
    whole = train(network(), tmp_path / "whole", **budget)
    again = train(network(), begun(tmp_path / "state", 11, **budget), **budget)
    assert again.resumed == 1
    assert abs(again.steps - whole.steps) <= 3
    assert 40 <= again.seconds <= 44


def test_only_where_and_how_fast_may_change_on_resuming(tmp_path: Path) -> None:
    begun(tmp_path, autoencoder="/here/vae")
    config = dataclasses.replace(CONFIG, autoencoder="vae")
    with pytest.raises(UsageError, match=r"expected network = '\w+"):
        optimise(nn.Linear(2, 2), denoise, EVEN, config, 0, checkpoint=tmp_path, progress=False)
    moved = {"device": "cpu", "checkpoint_seconds": 5.0, "autoencoder": "/elsewhere/vae"}
    assert train(network(), tmp_path, **moved).resumed == 1


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    (file,) = begun(tmp_path).iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    for content in (whole[:-100], bytes(flipped), b""):
        file.write_bytes(content)
        with pytest.raises(ShardError, match="corrupt training checkpoint") as caught:
            train(network(), tmp_path)
        assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in begun(tmp_path, 4).iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cfaug.data.files.os.fsync", full)
    with pytest.raises(CfaugError, match=r"cannot be written to .* \(No space left on device\)"):
        train(network(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_a_diverged_training_keeps_the_state_before(tmp_path: Path) -> None:
    net, whole = network(), network()
    with pytest.raises(CfaugError, match=r"the last good weights, of step 6, are kept in") as caught:
        train(net, tmp_path, failing(7, lambda value: value * torch.nan), checkpoint_seconds=1e6)
    for words in ("diverged at step 7", "the loss became nan", "--overwrite --decoder.learning_rate=0.0005", "0.002"):
        assert words in str(caught.value)
    again = network()  # had it been an accident of the machine, nothing would be lost
    assert train(again, tmp_path).resumed == 1
    train(whole)
    assert same(again, whole)


def test_a_gradient_that_is_not_finite_reaches_no_weight() -> None:
    net = network()
    with pytest.raises(CfaugError, match=r"at step 3: .* the gradient nan;"):
        train(net, loss=failing(3, lambda value: value + 0 * torch.sqrt(value * 0)))
    assert all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values())


@pytest.mark.parametrize(("batch", "cure"), [(8, "decoder.batch_size=4"), (1, "fewer decoder.channels")])
def test_too_little_memory_names_a_cure(batch: int, cure: str) -> None:
    with pytest.raises(CfaugError, match=f"not enough memory .* decoder.batch_size {batch}; set {cure}"):
        train(network(), loss=failing(2, lambda value: value + torch.empty(10**17).sum()), batch_size=batch)
    with pytest.raises(RuntimeError, match="must match"):  # and nothing else is taken for it
        train(network(), loss=failing(1, lambda value: torch.zeros(2) + torch.zeros(3)))


# -- early stopping ----------------------------------------------------------------------------------------------------


def test_it_stops_early_and_ends_with_the_best_weights() -> None:
    net, kept = network(), []
    values = iter([0.1, 0.5, 0.4, float("nan"), 0.5, 0.9])

    def score() -> float:
        kept.append(copied(net))
        return next(values)

    report = train(net, max_steps=40, validate_every=2, patience=3, score=score)
    assert report.stopped == "early"
    assert report.steps == 10
    assert report.scores == [{"step": 2 * i, "score": v} for i, v in zip(range(1, 6), [0.1, 0.5, 0.4, None, 0.5])]
    assert same(net, kept[1])
    assert not same(net, kept[4])


def test_the_end_is_scored_and_nothing_without_the_setting() -> None:
    report = train(network(), max_steps=5, validate_every=3, score=lambda: 1.0)
    assert [entry["step"] for entry in report.scores] == [3, 5]
    assert report.stopped == "budget"
    assert train(network(), score=lambda: 1 / 0).scores == []


# -- devices, precision, compiling -------------------------------------------------------------------------------------


def test_bf16_and_the_device_are_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    kinds = []
    for config in (DecoderConfig(), DecoderConfig(bf16=False), DecoderConfig(device="mps")):
        with autocast(config.device, config.bf16):
            kinds.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    here = torch.bfloat16 if has_bfloat16("cpu") else torch.float32
    assert kinds == [here, torch.float32, torch.float32]
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with autocast("cpu", True):  # convolutions would fall back to a loop
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    seen: list[str] = []

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(next(module.parameters()).device.type)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # "meta" computes nothing, but refuses to mix with a different device
        train(nn.Linear(4, 4), loss=loss, device="meta")
    assert seen == ["meta"]


class Compiled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._orig_mod(x)  # type: ignore[no-any-return]


def test_compiling_changes_neither_names_nor_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or Compiled(module))
    plain, fast = network(), network()
    train(plain)
    assert compiled == []
    train(fast, compile=True)
    assert compiled == [fast]
    assert same(plain, fast)

    def no_compiler(value: torch.Tensor) -> torch.Tensor:
        raise TorchDynamoException("no working\ncompiler found")

    with pytest.raises(CfaugError, match=r"got no working compiler found; set decoder\.compile=false"):
        train(network(), loss=failing(1, no_compiler), compile=True)


# -- several processes -------------------------------------------------------------------------------------------------

TOGETHER = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path[:0] = [{here!r}]
    import test_training as t
    from cfaug.decode.diffusion import distributed as processes
    from cfaug.errors import UsageError
    from safetensors.torch import save_file
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    net = t.plain_network()
    with torch.no_grad():
        net[0].bias.add_(rank)  # whatever the others start with, they start with the first one's
    scored = []
    report = t.train(net, validate_every=6, score=lambda: scored.append(1) or 0.5 + len(scored))
    assert processes.place() == (rank, 2) and processes.primary() == (rank == 0)
    assert processes.first(rank + 3, "cpu") == 3
    assert len(scored) == (2 if rank == 0 else 0) and [s["score"] for s in report.scores] == [1.5, 2.5]
    save_file(t.copied(net), folder / f"whole{{rank}}.safetensors")
    (folder / f"loss{{rank}}.txt").write_text(repr(report.loss))
    again = t.plain_network()
    try:
        t.train(again, folder / "state", t.failing(7, t.killed))
    except KeyboardInterrupt:
        pass
    again = t.plain_network()
    assert t.train(again, folder / "state").resumed == 1
    save_file(t.copied(again), folder / f"resumed{{rank}}.safetensors")
    try:
        t.train(again, batch_size=7)
    except UsageError as error:
        assert "multiple of the 2 processes, got 7; use 8" in str(error)
    else:
        raise SystemExit("an odd batch went through")
"""


def plain_network() -> nn.Module:
    """Without dropout, whose masks the processes draw for themselves."""
    net = network()
    net[2] = nn.Identity()  # type: ignore[operator]
    return net


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(textwrap.dedent(TOGETHER).format(here=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    files = {name: load_file(tmp_path / f"{name}.safetensors") for name in ("whole0", "whole1", "resumed0", "resumed1")}
    assert same(files["whole0"], files["whole1"])
    assert same(files["resumed0"], files["resumed1"])
    assert same(files["resumed0"], files["whole0"])
    assert (tmp_path / "loss0.txt").read_text() == (tmp_path / "loss1.txt").read_text()
    alone = plain_network()
    report = train(alone)
    assert report.loss == pytest.approx(float((tmp_path / "loss0.txt").read_text()), abs=2e-5)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(files["whole0"][name], tensor, atol=2e-5, rtol=0)
    start = plain_network().state_dict()
    assert min((alone.state_dict()[name] - start[name]).abs().max() for name in start) > 5e-4  # they moved much further


def test_each_process_draws_its_own_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes.own_rows(torch.randn, (6, 2), torch.Generator().manual_seed(0))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "place", lambda rank=rank: (rank, 3))
        parts.append(processes.own_rows(torch.randn, (2, 2), torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(parts), whole)
