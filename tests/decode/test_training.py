"""The training loop: exact resuming after a kill, divergence, early stopping, memory, devices, several processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
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
from cfaug.decode.semantic import Adversary, SemanticEncoder
from safetensors.torch import load_file
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.decode.diffusion import distributed as processes
from cfaug.decode.diffusion import training
from cfaug.decode.diffusion.checkpoint import averaged
from cfaug.decode.diffusion.flow_loss import Learner, train_velocity
from cfaug.decode.diffusion.network import VelocityNet
from cfaug.decode.diffusion.training import FitReport, autocast, forget, optimise
from cfaug.decode.diffusion.training_images import ImageViews
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
    return F.mse_loss(module(x + processes.normal(x.shape, generator)), x)


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


def copied(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in net.state_dict().items()
    }


def same(first: nn.Module | dict[str, torch.Tensor], second: nn.Module | dict[str, torch.Tensor]) -> bool:
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_it_leaves_the_averaged_weights_and_moves_nobodys_stream() -> None:
    before, raw, averages = torch.get_rng_state(), [], []

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert module.training
        raw.append(copied(module)["0.weight"])
        return denoise(module, batch, generator)

    def score(module: nn.Module) -> float:
        averages.append(copied(module)["0.weight"])
        return len(averages)

    net, plain = network(), network()
    report = train(net, loss=loss, max_steps=3, validate_every=1, score=score)
    train(plain, max_steps=3)
    assert (report.steps, report.images, report.resumed, report.stopped) == (3, 40, 0, "budget")
    torch.testing.assert_close(averages[0], raw[0] / 10 + raw[1] * 9 / 10)
    torch.testing.assert_close(averages[1], averages[0] * 2 / 11 + raw[2] * 9 / 11)
    assert torch.equal(plain.state_dict()["0.weight"], averages[2])
    assert not plain.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_report_of_an_older_checkpoint_still_reads() -> None:
    old = {"steps": 5, "seconds": 1.0, "loss": 0.5, "images": 48}
    assert FitReport(**old) == FitReport(5, 1.0, 0.5, 48, 0, "budget", [])  # type: ignore[arg-type]
    report = train(network(), validate_every=6, score=lambda net: 0.5)
    assert FitReport(**json.loads(json.dumps(dataclasses.asdict(report)))) == report


# -- resuming ----------------------------------------------------------------------------------------------------------

PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path[:0] = [{here!r}]
    import test_training as t
    from safetensors.torch import save_file
    folder = Path(sys.argv[1])

    def sigkill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def at_step_seven(net, **options):
        t.train(net, folder / "state", t.failing(7, sigkill), **options)

    def in_the_middle_of_a_write(net, **options):
        import cfaug.data.files as files
        whole, calls = os.replace, iter(range(1, 100))
        files.os.replace = lambda *a: sigkill() if next(calls) == 5 else whole(*a)
        t.train(net, folder / "state", **options)

    options = dict(bf16=True, validate_every=4, score=lambda net: float(net[0].weight.sum()) + float(torch.rand(())))
    for kill in (at_step_seven, in_the_middle_of_a_write):
        child = os.fork()
        if child == 0:
            kill(t.network(), **options)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        net = t.network()
        report = t.train(net, folder / "state", **options)
        save_file(t.copied(net), folder / f"{{kill.__name__}}.safetensors")
        (folder / f"{{kill.__name__}}.txt").write_text(f"{{report.steps}} {{report.resumed}} {{report.loss}} {{report.scores}}")
        t.forget(folder / "state")
        assert not (folder / "state").exists()
    net = t.network()
    report = t.train(net, **options)
    save_file(t.copied(net), folder / "whole.safetensors")
    (folder / "whole.txt").write_text(f"{{report.steps}} 1 {{report.loss}} {{report.scores}}")
"""


def test_a_training_that_is_killed_ends_in_the_same_bits(tmp_path: Path) -> None:
    program = textwrap.dedent(PROGRAM).format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = load_file(tmp_path / "whole.safetensors")
    for kill in ("at_step_seven", "in_the_middle_of_a_write"):
        assert same(load_file(tmp_path / f"{kill}.safetensors"), whole), kill
        assert (tmp_path / f"{kill}.txt").read_text() == (tmp_path / "whole.txt").read_text()


def test_the_velocity_network_resumes_exactly_too(tmp_path: Path) -> None:
    images = (DATA.clamp(-2, 2) * 60 + 127).to(torch.uint8)
    config = dataclasses.replace(CONFIG, max_steps=6, bf16=True, structure="layout")

    def run(directory: Path | None, kill: int | None = None) -> Learner:
        torch.manual_seed(0)
        blocks = [torch.tensor([0, 1]), torch.tensor([2, 3])]
        encoder = SemanticEncoder(3, 2, 1)
        learner = Learner(VelocityNet(3, 4, 5, 1, [8, 16]), encoder, Adversary(2, 4, blocks[0], blocks[1:]))
        steps = iter(range(1, 100))

        class Views(ImageViews):
            def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                if len(rows) == config.batch_size and next(steps) == kill:
                    raise KeyboardInterrupt
                return super().__call__(rows)

        views = Views(images, 2, "layout")
        train_velocity(learner, views, torch.ones(40, 4), EVEN, config, blocks, 0, False, checkpoint=directory)
        return learner

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", kill=4)
    assert same(run(tmp_path / "state"), run(None))


def test_another_seed_trains_another_network() -> None:
    first, second, third = network(), network(), network()
    train(first), train(second), train(third, seed=1)
    assert same(first, second)
    assert not same(first, third)


def test_validating_does_not_change_what_is_trained(tmp_path: Path) -> None:
    plain, scored, steps = network(), network(), iter(range(100))
    train(plain)

    def score(net: nn.Module) -> float:
        assert not net.training
        torch.rand(3)
        return float(next(steps))

    train(scored, validate_every=3, score=score)
    assert same(plain, scored)


def test_seconds_of_earlier_runs_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # every look at the clock takes a second
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    budget = {"max_steps": None, "seconds": 100.0}
    whole = train(network(), tmp_path / "whole", **budget)
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "state", failing(30, killed), **budget)
    again = train(network(), tmp_path / "state", **budget)
    assert again.resumed == 1
    assert abs(again.steps - whole.steps) <= 3
    assert 100 <= again.seconds <= 104


def _interrupt(net: nn.Module) -> float:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": 0.01}, r"decoder.learning_rate = 0.002, but 0.01 came"),
        ({"max_steps": 13}, "decoder.max_steps = 12, but 13 came"),
        ({"seed": 3}, "seed = 0, but 3 came"),
        ({"identity": "other images"}, "data = , but other images came"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path, failing(3, killed))
    with pytest.raises(UsageError, match=expected) as caught:
        train(network(), tmp_path, **settings)
    assert "\n" not in str(caught.value)
    assert "delete that directory" in str(caught.value)
    with pytest.raises(UsageError, match=r"made with network = decoder"):
        optimise(nn.Linear(2, 2), denoise, EVEN, CONFIG, 0, checkpoint=tmp_path, progress=False)
    assert train(network(), tmp_path, device="cpu", checkpoint_seconds=5.0).resumed == 1  # where and how fast is free


def test_the_place_of_an_autoencoder_is_free(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path, failing(3, killed), autoencoder="/here/vae")
    with pytest.raises(UsageError, match=r"decoder.autoencoder = vae, but other came"):
        train(network(), tmp_path, autoencoder="/here/other")
    assert train(network(), tmp_path, autoencoder="/elsewhere/vae").resumed == 1


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path, failing(3, killed))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    for content in (whole[:-100], bytes(flipped), b""):
        file.write_bytes(content)
        with pytest.raises(ShardError, match="corrupt training checkpoint") as caught:
            train(network(), tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator writes everywhere")
def test_a_disk_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CfaugError, match="cannot be written"):
        train(network(), tmp_path)


def test_a_full_disk_says_so_and_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path, failing(5, killed))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cfaug.data.files.os.fsync", full)
    with pytest.raises(CfaugError, match=r"cannot be written to .* \(No space left on device\)"):
        train(network(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_a_diverged_training_names_the_step_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(CfaugError, match="decoder training diverged: the loss became nan at step 7") as caught:
        train(net, tmp_path, failing(7, lambda value: value * torch.nan))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    good = averaged(tmp_path)
    assert all(bool(tensor.isfinite().all()) for tensor in good.values())
    assert same(net, good)
    assert not net.training
    clean = network()
    with pytest.raises(KeyboardInterrupt):
        train(clean, tmp_path / "clean", failing(7, killed))
    assert same(good, averaged(tmp_path / "clean"))


def test_what_diverges_before_its_first_checkpoint_is_kept_all_the_same(tmp_path: Path) -> None:
    net, whole = network(), network()
    with pytest.raises(CfaugError, match=r"the last good weights \(step 6\) are kept in") as caught:
        train(net, tmp_path, failing(7, lambda value: value * torch.nan), checkpoint_seconds=1e6)
    assert "with decoder.learning_rate 0.002" in str(caught.value)
    assert "--overwrite --decoder.learning_rate=0.0005` deletes that and starts over" in str(caught.value)
    assert same(net, averaged(tmp_path))
    # it is the state before the step that failed: had that been an accident of the machine, nothing would be lost
    again = network()
    assert train(again, tmp_path).resumed == 1
    train(whole)
    assert same(again, whole)


def test_a_divergence_does_not_replace_a_good_checkpoint_by_a_bad_state(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path, failing(4, killed))
    (before,) = (path.read_bytes() for path in tmp_path.iterdir())
    net, calls = network(), iter(range(1, 100))

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        value = denoise(module, batch, generator)
        if next(calls) < 3:
            return value
        next(module.parameters()).data.fill_(torch.inf)
        return value * torch.nan

    with pytest.raises(CfaugError, match=r"the last good weights \(step 3\) are kept in"):
        train(net, tmp_path, loss, checkpoint_seconds=1e6)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    assert same(net, averaged(tmp_path))


def test_a_gradient_that_is_not_finite_is_found_before_it_reaches_the_weights() -> None:
    net = network()
    with pytest.raises(CfaugError, match="the gradient became nan at step 3") as caught:
        train(net, loss=failing(3, lambda value: value + 0 * torch.sqrt(value * 0)))
    assert "kept" not in str(caught.value)  # nothing was asked to be kept
    assert all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values())


def test_too_little_memory_names_a_batch_size() -> None:
    with pytest.raises(
        CfaugError, match=r"not enough memory .* decoder.batch_size 8; set decoder.batch_size=4"
    ) as caught:
        train(network(), loss=failing(2, lambda value: value + torch.empty(10**17).sum()))
    assert "\n" not in str(caught.value)
    with pytest.raises(CfaugError, match=r"batch_size 1; set fewer decoder.channels"):
        train(network(), loss=failing(2, lambda value: value + torch.empty(10**17).sum()), batch_size=1)


def test_another_runtime_error_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        train(network(), loss=failing(1, lambda value: torch.zeros(2) + torch.zeros(3)))


# -- early stopping ----------------------------------------------------------------------------------------------------


def test_it_stops_early_and_ends_with_the_best_weights() -> None:
    kept: list[dict[str, torch.Tensor]] = []
    values = iter([0.1, 0.5, 0.4, float("nan"), 0.5, 0.9])

    def score(net: nn.Module) -> float:
        kept.append(copied(net))
        return next(values)

    net = network()
    report = train(net, max_steps=40, validate_every=2, patience=3, score=score)
    assert report.stopped == "early"
    assert report.steps == 10
    assert report.scores == [{"step": 2 * i, "score": v} for i, v in zip(range(1, 6), [0.1, 0.5, 0.4, None, 0.5])]
    assert same(net, kept[1])
    assert not same(net, kept[4])


def test_the_end_of_the_budget_is_scored_too() -> None:
    report = train(network(), max_steps=5, validate_every=3, score=lambda net: 1.0)
    assert [entry["step"] for entry in report.scores] == [3, 5]
    assert report.stopped == "budget"


def test_nothing_is_scored_unless_the_configuration_says_so() -> None:
    assert train(network(), score=_interrupt).scores == []


# -- devices, precision, compiling -------------------------------------------------------------------------------------


def test_bf16_is_the_configurations() -> None:
    kinds = []
    for bf16 in (True, False):
        with autocast(DecoderConfig(bf16=bf16)):
            kinds.append(torch.ones(2, 2) @ torch.ones(2, 2))
    assert [k.dtype for k in kinds] == [torch.bfloat16, torch.float32]
    with autocast(DecoderConfig(device="mps")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_compiling_is_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_(module: nn.Module) -> nn.Module:
        compiled.append(module)
        return _Same(module)

    monkeypatch.setattr(torch, "compile", compile_)
    plain, fast = network(), network()
    train(plain)
    assert compiled == []
    train(fast, compile=True)
    assert compiled == [fast]
    assert same(plain, fast)  # and its names are not the wrapper's


class _Same(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._orig_mod(x)  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_compiled_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def no_compiler(value: torch.Tensor) -> torch.Tensor:
        raise TorchDynamoException("no working\ncompiler found")

    monkeypatch.setattr(torch, "compile", _Same)
    with pytest.raises(CfaugError, match=r"but no working compiler found came; set decoder\.compile=false"):
        train(network(), loss=failing(1, no_compiler), compile=True)


def test_no_device_is_named_in_the_code() -> None:
    for file in ("training", "fit", "checkpoint", "processes"):
        assert ".cuda()" not in (REPO / "cfaug" / "decode" / f"{file}.py").read_text()


def test_everything_runs_on_the_device_of_the_configuration() -> None:
    # "meta" computes nothing, but refuses to mix with another device
    net = nn.Linear(4, 4)
    seen: list[str] = []

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(next(module.parameters()).device.type)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(net, loss=loss, device="meta")
    assert seen == ["meta"]


# -- several processes -------------------------------------------------------------------------------------------------

TOGETHER = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path[:0] = [{here!r}]
    import test_training as t
    from cfaug.decode import processes
    from cfaug.errors import UsageError
    from safetensors.torch import save_file
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    net = t.plain_network()
    with torch.no_grad():
        net[0].bias.add_(rank)  # whatever the others start with, they start with the first one's
    scored = []
    report = t.train(net, validate_every=6, score=lambda net: scored.append(1) or 0.5 + len(scored))
    assert processes.place() == (rank, 2) and processes.primary() == (rank == 0)
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
        assert "multiple of the 2 processes, but 7 came; use 8" in str(error)
    else:
        raise SystemExit("an odd batch went through")
"""


def plain_network() -> nn.Module:
    """Without dropout, whose masks the processes draw for themselves."""
    net = network()
    net[2] = nn.Identity()  # type: ignore[operator]
    return net


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(textwrap.dedent(TOGETHER).format(here=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
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
    assert min((alone.state_dict()[name] - start[name]).abs().max() for name in start) > 1e-3  # they moved much further


def test_each_process_draws_its_own_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes.normal((6, 2), torch.Generator().manual_seed(0))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "place", lambda rank=rank: (rank, 3))
        parts.append(processes.normal((2, 2), torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(parts), whole)


def test_forgetting_leaves_other_files_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "state", failing(3, killed))
    (tmp_path / "state" / "notes.txt").write_text("mine")
    forget(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["notes.txt"]
    forget(tmp_path / "nowhere")
