"""`ssm-kernels bench` on the command line: what it prints, saves, refuses and resumes."""

import json
import subprocess
import sys

import pytest
import torch
from ssm_kernels.bench import command
from ssm_kernels.bench.peers import Peers
from ssm_kernels.cli import main

ROW_KEYS = {"op", "shape", "dtype", "impl", "source", "fwd_ms", "bwd_ms", "floor_ms", "peak_bytes", "error_ratio"}
ENVIRONMENT = {"GPU", "driver", "torch", "triton", "git"}


@pytest.fixture
def bench(tmp_path):
    """Run the command in a quick form on a CPU; returns the exit code."""

    def run(*arguments, op="depthwise_conv1d", out=tmp_path / "out"):
        return main(
            ["bench", "--quick", "--device", "cpu", "--out", str(out), *(["--op", op] if op else []), *arguments]
        )

    return run


def saved(tmp_path, name="results.json"):
    return json.loads((tmp_path / "out" / name).read_text())


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["report", "--help"]])
def test_help_imports_no_torch(arguments):
    code = (
        f"import sys; from ssm_kernels.cli import main; code = main({arguments!r}); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: ssm-kernels" in done.stdout


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "ssm_kernels", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ssm-kernels ")


def test_every_operator_is_measured_and_saved(bench, tmp_path, capsys):
    """All operators and mixers, ours and PyTorch's, in the keys that other tools read, with the comparison printed."""
    assert bench(op=None) == 0
    report = saved(tmp_path)
    assert set(report) == {"rows", "environment"}
    assert set(report["environment"]) >= ENVIRONMENT
    found = {(row["op"], row["impl"]) for row in report["rows"]}
    mixers = {"Mamba", "BidirectionalMamba", "SS2D"}
    scans = {"selective_scan", "selective_scan_bidirectional", "selective_scan_2d", "linear_scan", "linear_scan_shared"}
    scans |= {"ssd", "ssd_step"}
    others = {"depthwise_conv1d", "window_attention", "window_attention_nobias"}
    others |= {"layer_norm", "add_rms_norm", "selective_scan_step", "depthwise_conv1d_step", "sliding_window_attention"}
    assert {op for op, _ in found} == mixers | scans | others
    assert found >= {(op, impl) for op in mixers | scans | others for impl in ("torch", "reference")}
    assert found >= {("window_attention", "torch_sdpa"), ("depthwise_conv1d", "torch_eager")}
    for row in report["rows"]:
        assert set(row) == ROW_KEYS | {"host_us"}
        assert row["fwd_ms"] > 0
        assert row["bwd_ms"] > 0
        assert row["error_ratio"] < 1e-3
    printed = capsys.readouterr().out
    assert "mamba_ssm is left out: runs on NVIDIA GPUs only" in printed
    assert "peer/ours" in printed


def test_dtypes_and_implementations_can_be_chosen(bench, tmp_path):
    assert bench("--dtype", "float16", "bfloat16", "--impl", "torch") == 0
    found = {(row["dtype"], row["impl"]) for row in saved(tmp_path)["rows"]}
    assert found == {(dtype, impl) for dtype in ("float16", "bfloat16") for impl in ("torch", "torch_eager")}


def test_results_are_not_overwritten_without_being_told(bench, tmp_path, capsys):
    assert bench() == 0
    before = saved(tmp_path)
    assert bench() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "results.json is there already; --resume goes on with it, --overwrite replaces it" in error
    assert saved(tmp_path) == before
    assert bench("--overwrite") == 0
    assert saved(tmp_path) != before


def test_resume_measures_what_is_missing_and_keeps_the_rest(bench, tmp_path):
    assert bench("--impl", "torch") == 0
    first = saved(tmp_path)["rows"]
    assert [row["impl"] for row in first] == ["torch", "torch_eager"]
    assert bench("--resume") == 0
    second = saved(tmp_path)["rows"]
    assert second[:2] == first
    assert [row["impl"] for row in second] == ["torch", "torch_eager", "reference"]


def test_resume_refuses_rows_of_another_machine(bench, tmp_path, capsys):
    """Rows of one file share GPU, versions and commit."""
    assert bench("--impl", "torch") == 0
    path = tmp_path / "out" / "results.json"
    report = saved(tmp_path)
    report["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(report))
    assert bench("--resume") == 2
    assert f"torch 1.0, now {torch.__version__}" in capsys.readouterr().err


def test_budget_stops_early_and_a_killed_run_keeps_its_rows(bench, tmp_path, capsys, monkeypatch):
    """Each row is on disk before the next is measured."""
    assert bench("--budget", "1e-9") == 0
    assert "with 1 sizes left; the same command with --resume goes on" in capsys.readouterr().out
    assert saved(tmp_path)["rows"] == []
    real, seen = command.run_case, []

    def killed(*args, **kwargs):
        for row in real(*args, **kwargs):
            seen.append(saved(tmp_path)["rows"])
            yield row
            if len(seen) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_case", killed)
    assert bench("--resume") == 130
    assert [len(rows) for rows in seen] == [0, 1]
    assert [row["impl"] for row in saved(tmp_path)["rows"]] == ["torch", "reference"]
    assert "interrupted" in capsys.readouterr().err


def test_wrong_kernel_has_no_time_and_fails_the_run(bench, tmp_path, capsys, monkeypatch):
    real = command.cases

    def wrong(*args, **kwargs):
        for op, sizes, dtype, make in real(*args, **kwargs):

            def made(make=make):
                case = make()
                right = case.call
                case.call = lambda x, impl: right(x, impl) * (1.01 if impl == "reference" else 1)
                return case

            yield op, sizes, dtype, made

    monkeypatch.setattr(command, "cases", wrong)
    assert bench() == 1
    times = {row["impl"]: row["fwd_ms"] for row in saved(tmp_path)["rows"]}
    assert times["reference"] is None
    assert times["torch"] > 0
    assert "reference: error ratio 1.0e-02 is over its limit; not timed" in capsys.readouterr().out


def test_wrong_peer_has_no_time_and_does_not_fail_the_run(bench, tmp_path, monkeypatch):
    """Our kernels are right; the comparison is left out."""

    def zeros(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        return 0 * sum(x.sum() for x in (delta, A, B, C, D, z, delta_bias)) * u

    monkeypatch.setattr(command, "find_peers", lambda device: Peers(scan=zeros))
    assert bench("--impl", "torch", op="selective_scan") == 0
    times = {row["impl"]: row["fwd_ms"] for row in saved(tmp_path)["rows"]}
    assert times["mamba_ssm"] is None
    assert times["torch"] > 0


def test_memory_that_is_not_enough_skips_the_size(bench, tmp_path, capsys, monkeypatch):
    real = command.cases

    def too_large(*args, **kwargs):
        for op, sizes, dtype, make in real(*args, **kwargs):

            def fails():
                raise torch.OutOfMemoryError("CUDA out of memory")

            yield op, sizes, dtype, fails if op == "depthwise_conv1d" else make

    monkeypatch.setattr(command, "cases", too_large)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert bench("window_attention", "--impl", "torch") == 0
    assert {row["op"] for row in saved(tmp_path)["rows"]} == {"window_attention", "window_attention_nobias"}
    assert "the GPU's memory is not enough; left out" in capsys.readouterr().out


def test_sweep_is_saved_and_resumed(bench, tmp_path, capsys, monkeypatch):
    whole = command.grid
    monkeypatch.setattr(command, "grid", lambda quick: [sizes for sizes in whole(quick) if sizes[0] == 1])
    assert bench("--sweep", op=None) == 0
    report = saved(tmp_path, "sweep.json")
    assert {len(row["shape"]) for row in report["rows"]} == {4}
    assert "cliffs of torch:" in capsys.readouterr().out
    assert bench("--sweep", "--resume", op=None) == 0
    assert saved(tmp_path, "sweep.json") == report


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bench", "--op", "nothing"], "argument --op: invalid choice: 'nothing'"),
        (["bench", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["bench", "--budget", "soon"], "argument --budget: must be seconds above 0, got soon"),
        (["bench", "--budget", "nan"], "argument --budget: must be seconds above 0, got nan"),
        (["bench", "--device", "toaster"], "--device: must be cpu, cuda, cuda:1, ..., got toaster"),
        (["bench", "--device", "meta"], "--device: must be cpu or cuda, got meta"),
        (["bench", "--device", "cuda:99"], "--device: cuda:99 is not here"),
        (["bench", "--device", "cpu", "--impl", "triton"], "--impl: triton needs a GPU"),
        (["bench", "--device", "cpu", "--sweep"], "--sweep: goes up to 2^31 elements and needs a GPU"),
        (["bench", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["bench", "--quick", "--device", "cpu", "--out", "/dev/null/x"], "/dev/null"),
        (["report", "nowhere"], "nowhere: has neither results.json nor sweep.json"),
        (["report", ".", "--page", "x.md"], "holds no folder of results"),
        (["report"], "the following arguments are required: FOLDER"),
        (["dance"], "argument VERB: invalid choice: 'dance'"),
        ([], "no verb given; choose bench, selftest or report"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("ssm-kernels")
    assert error.count("\n") == 1
    assert complaint in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_quick_run_on_a_gpu(tmp_path):
    """Triton is timed at the models' sizes, with memory, floors and host time, and known peers beside it."""
    arguments = ["--device", "cuda", "--impl", "triton", "--op", "selective_scan", "selective_scan_2d", "mixers"]
    assert main(["bench", "--quick", *arguments, "--out", str(tmp_path / "out")]) == 0
    report = saved(tmp_path)
    ours = [row for row in report["rows"] if row["impl"] == "triton"]
    assert {row["op"] for row in ours} >= {"selective_scan", "selective_scan_2d", "SS2D", "BidirectionalMamba"}
    assert all(row["peak_bytes"] > 0 and row["host_us"] > 0 for row in ours)
    assert all(row["floor_ms"] > 0 for row in ours if row["op"].startswith("selective"))
    if "H100" in report["environment"]["GPU"]:
        assert "vmamba_oflex" in {row["impl"] for row in report["rows"]}
