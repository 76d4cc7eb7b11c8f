"""The parts of the trainer by themselves; what a whole run does is in the workspace's trainer contract."""

import dataclasses
import io
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hybrid_sr.checkpoint import check_folder, open_folder
from hybrid_sr.config import PRESETS
from hybrid_sr.exchange import Exchange
from hybrid_sr.graphs import record
from hybrid_sr.guard import FiniteGuard, NonFiniteError, Stop
from hybrid_sr.loss import pixel_loss
from hybrid_sr.metrics import psnr_y
from hybrid_sr.model import HybridSR
from hybrid_sr.options import parse
from hybrid_sr.outofmemory import fitting_batch
from hybrid_sr.pace import Pace
from hybrid_sr.photos import Pair, shrink
from hybrid_sr.recipes import RECIPES, TrainConfig, recipe
from hybrid_sr.resize import imresize
from hybrid_sr.run import tensors
from hybrid_sr.sources import Photo
from hybrid_sr.train import ema_at, lr_at, take_step, train
from hybrid_sr.validation import draw, middle, score, validation_pairs
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True)


def photo(height: int, width: int, scale: int) -> Pair:
    y, x = np.mgrid[: height * scale, : width * scale] / 17
    hr = np.stack([np.sin(x * (c + 1)) * np.cos(y) * 100 + 128 for c in range(3)], -1).astype(np.uint8)
    return Pair("waves", hr, shrink(hr, scale))


@pytest.mark.parametrize("name", [*PRESETS, "ship"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_network_has_a_run(name: str, scale: int):
    cfg = recipe(name, scale)
    assert cfg.scale == scale
    assert name == "ship" or cfg.model == PRESETS[name](scale)
    assert set(RECIPES) == {*PRESETS, "ship"}


def test_published_recipe():
    cfg = recipe("contrast-no-pe-no-cab", 4)
    assert (cfg.global_batch, cfg.patch, cfg.lr, cfg.betas, cfg.steps) == (32, 64, 2e-4, (0.9, 0.99), 500_000)
    assert (cfg.loss, cfg.weight_decay, cfg.precision) == ("l1", 0, "no")
    assert recipe("contrast-s", 4).global_batch == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup": 20}, r"warmup must be in \[0, steps=20\), got 20"),
        ({"lr": 1e-5}, "lr must be above 0 and not below min_lr"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"clip": -1}, "clip must be at least 0"),
        ({"max_minutes": 0}, "max_minutes must be above 0"),
        ({"stop_at": 0}, "stop_at must be at least 1"),
        ({"precision": "fp8"}, "precision must be one of no, bf16, fp16"),
        ({"loss": "l2"}, "loss must be one of l1, charbonnier"),
        ({"graph": True, "compile": True}, "graph must be off with .* got it with compile; leave out"),
        ({"graph": True, "micro_batch": 2}, "graph must be off with .* got it with accumulation; leave out"),
        ({"processes": 3}, r"global_batch must be a multiple of micro_batch \* processes = 4 \* 3 = 12, got 4"),
    ],
)
def test_contradictions_are_refused(change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(recipe("tiny"), **change)


def test_recording_without_a_gpu_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cpu")))
    with pytest.raises(ValueError, match="train: --graph must have a CUDA GPU, got cpu; leave it out here"):
        train(dataclasses.replace(recipe("tiny"), graph=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_may_be_resumed_with_recording_or_without(tmp_path: Path):
    cfg = recipe("tiny")
    open_folder(cfg, tmp_path)
    check_folder(dataclasses.replace(cfg, graph=True), tmp_path, resume=True)
    with pytest.raises(ValueError, match="--resume: patch was"):
        check_folder(dataclasses.replace(cfg, patch=9), tmp_path, resume=True)


def test_full_memory_names_what_fits_without_recording():
    cfg = dataclasses.replace(recipe("tiny"), graph=True)

    def fits(trial: TrainConfig, out: Path):
        if trial.graph or trial.micro_batch > most:
            raise torch.OutOfMemoryError

    for most in (cfg.micro_batch, 2):
        assert f"--micro_batch {most} fits without --graph" in fitting_batch(cfg, fits)
    most = 0
    assert "no smaller one fits without --graph; add --checkpoint_activations" in fitting_batch(cfg, fits)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("contrast-no-pe-no-cab", "hat-light"))
def test_recorded_pass_is_the_pass(name: str):
    cfg = dataclasses.replace(recipe(name), micro_batch=2, global_batch=2, graph=True)
    device = torch.device("cuda")
    torch.manual_seed(0)
    plain = HybridSR(cfg.model).to(device)
    recorded = HybridSR(cfg.model).to(device)
    recorded.load_state_dict(plain.state_dict())
    record(recorded, cfg, device)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x = torch.rand(2, 3, cfg.patch, cfg.patch, device=device)
        outputs = []
        for network in (plain.train(), recorded.train()):
            network.zero_grad()
            y = network(x)
            y.square().mean().backward()
            outputs.append([y.detach().clone(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
        assert len(outputs[0]) == len(outputs[1]) == 1 + len(list(plain.parameters()))
        for a, b in zip(*outputs, strict=True):
            assert (a - b).norm() <= 1e-3 * a.norm() + 1e-7


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown name 'swin'; known are .*contrast-s"):
        recipe("swin")


def test_command_line_overrides_preset_and_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: tiny\nscale: 2\nlr: 0.5\nmodel:\n  dim: 24\n")
    order = parse(["--config", str(file), "--out", "runs/a", "--steps", "7", "--model.heads", "4"])
    cfg = order.config
    assert (cfg.scale, cfg.lr, cfg.steps, cfg.model.dim, cfg.model.heads) == (2, 0.5, 7, 24, 4)
    assert cfg.patch == recipe("tiny").patch
    assert (order.out, order.resume) == (Path("runs/a"), False)


def test_switch_needs_no_value():
    on = parse(["tiny", "--out", "a", "--compile", "--resume", "--checkpoint_activations", "false"])
    assert on.config.compile
    assert on.resume
    assert not on.config.checkpoint_activations


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the preset is missing"),
        (["tiny"], "--out is missing"),
        (["--out", "a", "tiny"], "the preset is missing; give it first"),
        (["tiny", "--out", "a", "--scale"], "--scale"),
        (["tiny", "--out", "a", "--scale", "two"], "--scale must be a whole number"),
        (["tiny", "--out", "a", "--scale", "2", "--model.scale", "3"], "contradicts"),
        (["tiny", "--out", "a", "--model.dim", "13"], "multiple of heads"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    said_all = capsys.readouterr().err
    assert said in said_all
    assert said_all.count("\n") == 1


def test_learning_rate_rises_then_falls_along_half_a_cosine():
    cfg = dataclasses.replace(recipe("tiny"), steps=110, warmup=10, lr=1.0, min_lr=0.2)
    assert [lr_at(step, cfg) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_at(60, cfg) == pytest.approx(0.6)
    assert lr_at(110, cfg) == pytest.approx(0.2)


def test_average_follows_quickly_at_first():
    cfg = dataclasses.replace(recipe("tiny"), ema=0.999)
    assert ema_at(0, cfg) == pytest.approx(0.1)
    assert ema_at(90, cfg) == pytest.approx(0.91)
    assert ema_at(10**6, cfg) == 0.999
    assert ema_at(50, dataclasses.replace(cfg, ema=0.0)) == 0


def test_average_of_sorted_tensors_is_that_of_averaged_model():
    """The trainer averages lists that it sorted once; buffers of whole numbers stay out of it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = AveragedModel(network, use_buffers=True), AveragedModel(network, use_buffers=True)
    theirs.n_averaged += 1
    theirs.multi_avg_fn = get_ema_multi_avg_fn(0.7)
    network(torch.randn(8, 3)).sum().backward()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    get_ema_multi_avg_fn(0.7)(tensors(ours.module), tensors(network), ours.n_averaged)
    theirs.update_parameters(network)
    for a, b in zip(tensors(ours.module), tensors(theirs.module), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len(tensors(network)) == 6  # four parameters, running mean and variance


@pytest.mark.parametrize("kind", ["l1", "charbonnier"])
def test_loss_is_a_distance(kind):
    output, target = torch.tensor([[0.0, 0.5]], dtype=torch.bfloat16), torch.tensor([[1.0, 0.5]])
    loss = pixel_loss(kind, output, target)
    assert loss.dtype == torch.float32
    expected = 0.5 if kind == "l1" else (math.sqrt(1 + 1e-6) + 1e-3) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    pixel_loss(kind, target.requires_grad_(), target.detach()).backward()
    assert torch.isfinite(target.grad).all()


def step_with_gradient(weight: nn.Parameter, optimizer: torch.optim.Optimizer, guard: FiniteGuard, step: int, g: float):
    weight.grad = torch.full_like(weight, g)
    guard.check(step, torch.tensor(1.0), weight.grad.norm())
    optimizer.step()


def test_step_that_is_not_finite_changes_nothing_nor_do_later_ones(accelerator: Accelerator, tmp_path: Path):
    """Weights and moments stay bit-equal from the first bad step on, although nobody has read the flag yet."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = FiniteGuard(accelerator, optimizer)
    cfg = recipe("tiny")
    step_with_gradient(weight, optimizer, guard, 0, 1.0)
    guard.refuse(cfg, tmp_path, lambda _: [])
    before = [weight.detach().clone(), *(x.clone() for x in optimizer.state[weight].values())]
    assert not torch.equal(before[0], torch.ones(3))
    for step, gradient in ((1, math.inf), (2, math.nan), (3, 1.0)):
        step_with_gradient(weight, optimizer, guard, step, gradient)
    after = [weight.detach(), *optimizer.state[weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(NonFiniteError, match=r"step 1, crops 4 to 7 \(a.png\).* no checkpoint had been written"):
        guard.refuse(cfg, tmp_path, lambda crops: ["a.png"])


def test_loss_alone_can_stop_a_run(accelerator: Accelerator, tmp_path: Path):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True)
    guard = FiniteGuard(accelerator, optimizer)
    guard.check(5, torch.tensor(math.nan), torch.tensor(1.0))
    with pytest.raises(NonFiniteError, match="step 5"):
        guard.refuse(recipe("tiny"), tmp_path, lambda _: [])


@pytest.mark.parametrize("graph", [True, False])
def test_loss_of_a_step_is_averaged_over_processes_once(accelerator: Accelerator, monkeypatch, graph: bool):
    """A recorded step has it from the message that carries the gradients; another message would only take time."""
    messages = []

    def sent(x: torch.Tensor) -> None:
        messages.append(x.numel())
        x *= 2  # two processes with the same batch

    monkeypatch.setattr(torch.distributed, "all_reduce", sent)
    monkeypatch.setattr(accelerator, "reduce", lambda x, _: (sent(x), x / 2)[1])
    network = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    cfg = dataclasses.replace(recipe("tiny"), graph=graph, processes=2, micro_batch=2, loss="l1")
    batch = {"lr": torch.ones(2, 3, 4, 4), "hr": torch.zeros(2, 3, 4, 4)}
    wanted = pixel_loss("l1", network(batch["lr"]), batch["hr"]).item()
    run = SimpleNamespace(
        cfg=cfg,
        accelerator=accelerator,
        network=network,
        optimizer=optimizer,
        guard=FiniteGuard(accelerator, optimizer),
        exchange=Exchange(network.parameters(), 2 if graph else 1),
        progress=SimpleNamespace(step=0),
    )
    loss, _ = take_step(run, iter([batch]))
    assert loss.item() == pytest.approx(wanted)
    assert messages == ([sum(p.numel() for p in network.parameters()) + 1] if graph else [1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted_once_and_handlers_return(accelerator: Accelerator, number: signal.Signals):
    before = signal.getsignal(number)
    with Stop(None) as stop:
        assert stop.wanted(accelerator, agree=False) is None
        os.kill(os.getpid(), number)
        assert stop.wanted(accelerator, agree=False) == number.name
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one kills
    assert signal.getsignal(number) == before


def test_time_limit(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Stop(2) as stop:
        now[0] += 119
        assert stop.wanted(accelerator, agree=False) is None
        now[0] += 1
        assert stop.wanted(accelerator, agree=False) == "max_minutes"


def test_pauses_do_not_count_as_slowness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    pace = Pace(10, 100, shown=True)
    now[0] += 4
    with pace.paused():
        now[0] += 1000
    assert pace.lap(18) == pytest.approx(2)
    pace.row(18, {"loss": 0.125})
    assert capsys.readouterr().err == "step 18/100  loss 0.125  left 00:00:41\n"


def test_bar_appears_for_a_person_only(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    pace = Pace(0, 5, shown=True)
    pace.advance()
    pace.row(1, {"loss": 0.5})
    pace.say("saved")
    pace.close()
    assert "1/5" in screen.getvalue()
    assert "saved\n" in screen.getvalue()
    quiet = Pace(0, 5, shown=False)
    before = screen.getvalue()
    quiet.advance()
    quiet.say("no")
    quiet.close()
    assert screen.getvalue() == before


class Bicubic(nn.Module):
    """A network that enlarges like bicubic, for comparisons."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picture = (x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        return torch.from_numpy(imresize(picture, self.scale)).permute(2, 0, 1)[None] / 255


def test_validation_score_is_the_mean_psnr_on_y():
    pairs = [photo(30, 20, 2), photo(16, 25, 2)]
    expected = np.mean([psnr_y(imresize(p.lr, 2), p.hr, crop=2) for p in pairs])
    assert score(Bicubic(2), pairs, 2, torch.device("cpu")) == pytest.approx(float(expected), abs=1e-9)
    assert math.isnan(score(Bicubic(2), [], 2, torch.device("cpu")))


def test_middle_of_a_photo_stays_aligned():
    whole = photo(300, 170, 4)
    cut = middle(whole, 4)
    assert cut.lr.shape == (120, 120, 3)
    assert cut.hr.shape == (480, 480, 3)
    np.testing.assert_array_equal(cut.lr, whole.lr[90:210, 25:145])
    np.testing.assert_array_equal(cut.hr, whole.hr[360:840, 100:580])


def test_picture_shows_four_versions_of_each_photo(tmp_path: Path):
    pairs = [photo(60, 100, 4), photo(40, 30, 4)]
    draw(Bicubic(4), pairs, 4, torch.device("cpu"), tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (192 + 160, 4 * 192, 3)
    np.testing.assert_array_equal(picture[:192, 192:384], picture[:192, 384:576])  # bicubic and a bicubic network
    np.testing.assert_array_equal(picture[:192, 576:], pairs[0].hr[24:216, 104:296])


def test_validation_prefers_the_datas_own_photos(tmp_path: Path):
    for name in ("a", "b"):
        Image.fromarray(photo(30, 30, 2).hr).save(tmp_path / f"{name}.png")
    cfg = recipe("tiny", 2)
    photos = [Photo(name=n, path=tmp_path / f"{n}.png", split=s) for n, s in (("a", "train"), ("b", "validation"))]
    assert [p.name for p in validation_pairs(cfg, photos)] == ["b"]
    assert validation_pairs(dataclasses.replace(cfg, validation="none"), photos) == []
    other = dataclasses.replace(cfg, validation=str(tmp_path))
    assert [p.name for p in validation_pairs(other, photos)] == ["a.png", "b.png"]


def test_configuration_goes_through_a_file():
    cfg = recipe("ship", 2)
    assert TrainConfig(**{**cfg.to_dict(), "model": cfg.model}) == cfg
