"""The trainer contract, the same cases for every package that trains; one joins by an entry in conftest's TRAINERS.

Most runs happen in this process, which saves importing torch each time; what needs real processes is launched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COLUMNS = ["step", "loss", "lr", "grad_norm", "samples_per_s", "peak_bytes"]
STEPS, EPOCH = 8, 4  # steps of the runs below; a trainer's data and arguments make an epoch of four
COMMON = (
    *("--validation", "none", "--workers", "0", "--global_batch", "2", "--micro_batch", "2", "--warmup", "1"),
    *("--ema", "0.9", "--steps", str(STEPS), "--log_every", "1", "--save_every", "2", "--sample_every", "8"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    text: str
    out: Path

    def rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows()]

    def one_line(self) -> str:
        assert "Traceback" not in self.text
        assert self.text.strip().count("\n") == 0, self.text
        return self.text


@pytest.fixture(scope="session")
def run(trainer: Any, data: Path) -> Callable[..., Result]:
    """Run the trainer in this process; later arguments override earlier ones."""
    return functools.partial(run_here, trainer, data)


def run_here(trainer: Any, data: Path, out: Path, *more: str) -> Result:
    from accelerate.state import AcceleratorState, GradientState

    module = importlib.import_module(trainer.module)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        try:
            code = module.main([*trainer.arguments, *COMMON, "--data", str(data), "--out", str(out), *more])
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Result(code, text.getvalue(), out)


def launch(trainer: Any, data: Path, out: Path, *more: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start the trainer in its own process, or in several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", trainer.module]
    count = ["--processes", str(processes), "--micro_batch", str(2 // processes)]
    command = [*start, *trainer.arguments, *COMMON, "--data", str(data), "--out", str(out), *count, *more]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str], out: Path) -> Result:
    _, text = process.communicate(timeout=240)
    return Result(process.returncode, text, out)


def state_of(out: Path, step: int = STEPS) -> dict[str, bytes]:
    """The weights in `model/` and in a checkpoint, and its optimizer state."""
    import torch

    folder = out / "checkpoints" / f"step-{step:08d}"
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    state = {"model": (out / "model" / "model.safetensors").read_bytes()}
    state["weights"] = (folder / "model.safetensors").read_bytes()
    for number, moments in optimizer.items():
        for name, tensor in moments.items():
            state[f"{name} {number}"] = tensor.numpy().tobytes()
    return state


def assert_same_run(a: Path, b: Path) -> None:
    one, other = state_of(a), state_of(b)
    assert [name for name in one if one[name] != other.get(name)] == []


@pytest.fixture(scope="session")
def whole(run: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An uninterrupted run; other tests compare with it and must not change it."""
    result = run(tmp_path_factory.mktemp("whole") / "run")
    assert result.code == 0, result.text
    return result


@pytest.fixture
def copy(whole: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.out, tmp_path / "copy"))


def test_metrics_have_exactly_the_agreed_columns(whole: Result) -> None:
    rows = whole.rows()
    assert [list(row) for row in rows] == [COLUMNS] * STEPS
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) and value > 0 for row in rows for value in row.values())


def test_loss_falls(whole: Result) -> None:
    losses = whole.losses()
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])


def test_folder_holds_newest_checkpoints_and_the_configuration(whole: Result) -> None:
    checkpoints = sorted(folder.name for folder in (whole.out / "checkpoints").iterdir())
    assert checkpoints == ["step-00000004", "step-00000006", "step-00000008"]
    assert json.loads((whole.out / "config.json").read_text())["steps"] == STEPS


def test_exported_model_loads_and_is_the_average(trainer: Any, whole: Result) -> None:
    from safetensors.torch import load_file

    exported = trainer.load(whole.out / "model").state_dict()
    newest = load_file(whole.out / "checkpoints" / "step-00000008" / "model.safetensors")
    assert set(exported) == set(newest)
    assert any((exported[name] != newest[name]).any() for name in newest)


@pytest.mark.parametrize("stop", [EPOCH, EPOCH + 1, STEPS - 1], ids=["epoch-end", "mid-epoch", "mid-interval"])
def test_resume_is_bit_equal(run: Callable[..., Result], whole: Result, tmp_path: Path, stop: int) -> None:
    rows = ("--log_every", "2")  # an odd stop falls inside an interval
    first = run(tmp_path, "--stop_at", str(stop), *rows)
    assert (first.code, len(first.rows())) == (0, stop // 2)
    second = run(tmp_path, "--resume", *rows)
    assert second.code == 0, second.text
    assert_same_run(whole.out, tmp_path)
    pairs = np.reshape(whole.losses(), (-1, 2)).mean(1)
    np.testing.assert_allclose(second.losses(), pairs, rtol=1e-6)


def test_same_seed_same_run_and_other_seed_another(run: Callable[..., Result], whole: Result, tmp_path: Path) -> None:
    again = run(tmp_path / "same", "--stop_at", "2")
    other = run(tmp_path / "other", "--stop_at", "2", "--seed", "11")
    assert again.losses() == whole.losses()[:2]
    assert other.losses()[0] != whole.losses()[0]


def test_accumulation_equals_one_large_batch(run: Callable[..., Result], whole: Result, tmp_path: Path) -> None:
    parts = run(tmp_path, "--micro_batch", "1", "--stop_at", "4")
    np.testing.assert_allclose(parts.losses(), whole.losses()[:4], rtol=1e-4)
    np.testing.assert_allclose(parts.rows()[0]["grad_norm"], whole.rows()[0]["grad_norm"], rtol=1e-4)


def test_recomputing_activations_changes_nothing(run: Callable[..., Result], whole: Result, tmp_path: Path) -> None:
    cheap = run(tmp_path, "--checkpoint_activations", "--stop_at", "3")
    np.testing.assert_allclose(cheap.losses(), whole.losses()[:3], rtol=1e-5)


def test_bfloat16_stays_close(run: Callable[..., Result], whole: Result, tmp_path: Path) -> None:
    low = run(tmp_path, "--precision", "bf16", "--stop_at", "3")
    np.testing.assert_allclose(low.losses(), whole.losses()[:3], rtol=0.05)
    assert low.losses() != whole.losses()[:3]


@pytest.mark.slow
def test_compiled_run_stays_close(run: Callable[..., Result], whole: Result, tmp_path: Path) -> None:
    compiled = run(tmp_path, "--compile", "--stop_at", "3")
    np.testing.assert_allclose(compiled.losses(), whole.losses()[:3], rtol=1e-3)


def test_clipping_bounds_the_step_and_reports_the_unclipped_norm(
    run: Callable[..., Result], whole: Result, tmp_path: Path
) -> None:
    clipped = run(tmp_path, "--clip", "1e-12", "--stop_at", "2")
    assert clipped.rows()[0]["grad_norm"] == whole.rows()[0]["grad_norm"]
    assert clipped.losses()[1] != whole.losses()[1]


def test_learning_rate_is_a_function_of_the_step(whole: Result) -> None:
    rates = [row["lr"] for row in whole.rows()]
    assert rates[0] == max(rates)  # one step of warm-up
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]


def test_number_that_is_not_finite_stops_before_the_step(run: Callable[..., Result], tmp_path: Path) -> None:
    """The rate makes the weights overflow, so a later step meets infinity; the bad step is deferred to the next row."""
    result = run(tmp_path, "--lr", "1e30", "--log_every", "4", "--save_every", "1", "--warmup", "0")
    assert result.code == 1
    assert "Traceback" not in result.text
    last = result.text.strip().splitlines()[-1]
    assert "not finite at step 1" in last
    assert "step-00000001" in last
    saved = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert saved == ["step-00000001"]


def test_damaged_checkpoints_are_named_and_skipped(run: Callable[..., Result], whole: Result, copy: Path) -> None:
    newest = copy / "checkpoints" / "step-00000008"
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    half = copy / "checkpoints" / "step-00000009.tmp"
    half.mkdir()
    result = run(copy, "--resume")
    assert result.code == 0, result.text
    assert "step-00000008: model.safetensors damaged" in result.text
    assert "step-00000009.tmp: half-written" in result.text
    assert "resuming from" in result.text
    assert_same_run(whole.out, copy)
    assert [row["step"] for row in Result(0, "", copy).rows()] == list(range(1, STEPS + 1))


def test_truncated_checkpoint_file_is_damage(run: Callable[..., Result], copy: Path) -> None:
    (copy / "checkpoints" / "step-00000008" / "optimizer.bin").write_bytes(b"")
    (copy / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
    result = run(copy, "--resume", "--stop_at", "5")
    assert result.code == 0, result.text
    assert "step-00000008: optimizer.bin damaged" in result.text
    assert "step-00000006" in result.text
    assert "step-00000004" in next(line for line in result.text.splitlines() if line.startswith("resuming"))


def test_existing_folder_needs_resume(run: Callable[..., Result], whole: Result) -> None:
    before = sorted(whole.out.rglob("*"))
    result = run(whole.out)
    assert result.code == 2
    assert "--resume" in result.one_line()
    assert sorted(whole.out.rglob("*")) == before


def test_a_configuration_that_cuts_the_network_is_refused(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averaged weights are whole on every process, so a sharded run would fail later, in words of torch."""
    from accelerate import Accelerator, DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    result = run(tmp_path / "run")
    assert result.code == 2
    assert "must keep the network whole on every process, got a configuration for FSDP; leave out" in result.text
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_run(run: Callable[..., Result], copy: Path) -> None:
    result = run(copy, "--resume", "--lr", "0.01")
    assert result.code == 2
    assert "lr was" in result.one_line()


def test_unwritable_folder_is_an_error_before_the_first_step(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "run")
    assert result.code == 2
    assert "cannot be written" in result.one_line()


def test_full_disk_is_an_error_before_the_first_step(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 4096, 4096))
    result = run(tmp_path / "run")
    assert result.code == 2
    assert "left, the run needs" in result.text
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense", "1"], "nonsense"),
        (["--steps", "many"], "steps"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--global_batch", "3"], "global_batch must be a multiple of"),
        (["--precision", "fp7"], "precision"),
        (["--processes", "2", "--micro_batch", "1"], "--processes must be the number of processes, 1"),
        (["--data", "/nonexistent/folder"], "/nonexistent/folder"),
        (["--config", "/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_mistakes_are_one_line(run: Callable[..., Result], tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run(tmp_path / "run", *arguments)
    assert result.code == 2
    assert said in result.one_line()


def test_empty_folder_says_what_was_looked_for(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "run", "--data", str(tmp_path / "empty"))
    assert result.code == 2
    assert ".png" in result.one_line()


def test_unreadable_file_is_named_skipped_and_counted(
    run: Callable[..., Result], trainer: Any, data: Path, tmp_path: Path
) -> None:
    spoiled = Path(shutil.copytree(data, tmp_path / "data"))
    name = trainer.spoil(spoiled)
    result = run(tmp_path / "run", "--data", str(spoiled), "--stop_at", "1")
    assert result.code == 0, result.text
    assert name in result.text
    assert "1 of 3 images skipped" in result.text


def test_time_limit_saves_and_resumes(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run(tmp_path, "--max_minutes", "1e-6")
    assert result.code == 0, result.text
    assert (tmp_path / "checkpoints" / "step-00000001").is_dir()
    assert "max_minutes" in result.text


def test_printed_configuration_loads_again(
    trainer: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(trainer.module).main
    asked = [*trainer.arguments, *COMMON, "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "5"]
    printed = []
    for arguments in (asked, ["--config", str(tmp_path / "run.yaml")]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--print_config"])
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
        (tmp_path / "run.yaml").write_text(printed[0])
    assert printed[0] == printed[1]
    assert "steps: 5" in printed[0]


def test_unknown_key_of_a_file_is_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("stepz: 5\n")
    result = run(tmp_path / "run", "--config", str(tmp_path / "run.yaml"))
    assert result.code == 2
    assert "stepz" in result.one_line()


def test_help_is_quick_and_imports_nothing_heavy(trainer: Any) -> None:
    code = (
        f"import sys, time; from {trainer.module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "assert time.process_time() < 2, time.process_time()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--global_batch" in done.stdout


@contextlib.contextmanager
def signal_when(file: Path, pid: int, number: signal.Signals) -> Iterator[None]:
    """Send a signal as soon as a file appears."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(pid, number)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_interrupt_finishes_the_step_saves_and_resumes(
    run: Callable[..., Result], whole: Result, tmp_path: Path
) -> None:
    with signal_when(tmp_path / "metrics.jsonl", os.getpid(), signal.SIGINT):
        stopped = run(tmp_path, "--save_every", "1000")
    assert stopped.code == 0, stopped.text
    done = len(stopped.rows())
    if done < STEPS:
        assert "SIGINT" in stopped.text
        assert (tmp_path / "checkpoints" / f"step-{done:08d}").is_dir()
    assert run(tmp_path, "--resume").code == 0
    assert_same_run(whole.out, tmp_path)


def test_sigterm_saves_and_exits_cleanly(trainer: Any, data: Path, tmp_path: Path) -> None:
    """A process of its own, with a loader process that must go too."""
    long = ("--steps", "100000", "--save_every", "100000", "--workers", "1")
    process = launch(trainer, data, tmp_path / "run", *long)
    with signal_when(tmp_path / "run" / "metrics.jsonl", process.pid, signal.SIGTERM):
        result = finish(process, tmp_path / "run")
    assert result.code == 0, result.text
    assert "SIGTERM" in result.text
    done = len(result.rows())
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}").is_dir()


@pytest.fixture(scope="session")
def pair(trainer: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """Two processes: a run without a stop, and its copy set back to the middle of an epoch and resumed."""
    folder = tmp_path_factory.mktemp("pair")
    whole = finish(launch(trainer, data, folder / "whole", processes=2), folder / "whole")
    assert whole.code == 0, whole.text
    back = Path(shutil.copytree(whole.out, folder / "back"))
    shutil.rmtree(back / "checkpoints" / "step-00000008")
    shutil.rmtree(back / "model")
    resumed = finish(launch(trainer, data, back, "--resume", processes=2), back)
    assert resumed.code == 0, resumed.text
    assert "step-00000006" in resumed.text
    return whole, resumed


def test_two_processes_resume_bit_equally(pair: tuple[Result, Result]) -> None:
    assert len(list((pair[0].out / "checkpoints" / "step-00000008").glob("random_states_*"))) == 2
    assert_same_run(pair[0].out, pair[1].out)


def test_two_processes_have_the_loss_of_one(pair: tuple[Result, Result], whole: Result) -> None:
    np.testing.assert_allclose(pair[0].losses(), whole.losses(), rtol=1e-3)
    np.testing.assert_allclose(pair[0].rows()[0]["grad_norm"], whole.rows()[0]["grad_norm"], rtol=1e-4)
