"""ssm_kernels.bench and the benchmark scripts: what they write, and that they refuse to time a wrong kernel."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from ssm_kernels.bench import Case, Row, as_table, floor_ms, main, measure, run_case
from ssm_kernels.testing import scan_inputs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SCRIPTS = ["depthwise_conv1d", "selective_scan", "selective_scan_2d", "window_attention"]
ROW_KEYS = {"op", "shape", "dtype", "impl", "source", "fwd_ms", "bwd_ms", "floor_ms", "peak_bytes", "error_ratio"}


def load(name):
    """Import a benchmark script as a module; running it is its main()."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def squares(error=0.0, device="cpu"):
    """A case whose "torch" implementation is off by a factor 1 + error, in output and gradient."""

    def call(x, impl):
        # float64 inputs are those of the truth
        return x["x"] ** 2 * (1 + (error if x["x"].dtype != torch.float64 else 0))

    x = torch.arange(1.0, 7.0, device=device).view(2, 3)
    return Case("squares", (2, 3), "float32", {"x": x}, call, 0.5, triton=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_rows_and_environment(name, tmp_path, capsys):
    """Every script runs on a CPU and writes exactly the keys that other tools read."""
    script = load(name)
    out = tmp_path / "made" / "x.json"
    code = main(script.__doc__, script.cases, script.table(), ["--device", "cpu", "--quick", "--out", str(out)])
    assert code == 0
    report = json.loads(out.read_text())
    assert set(report) == {"rows", "environment"}
    assert set(report["environment"]) == {"GPU", "driver", "torch", "triton", "git"}
    assert report["rows"]
    for row in report["rows"]:
        assert set(row) == ROW_KEYS
        assert row["fwd_ms"] > 0
        assert row["bwd_ms"] > 0
    ours = [row for row in report["rows"] if row["impl"] in ("torch", "reference")]
    assert {row["impl"] for row in ours} == {"torch", "reference"}
    assert all(0 <= row["error_ratio"] < 1e-4 for row in ours)
    assert "fwd ms" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_compares_with_the_table_on_a_gpu(name, tmp_path):
    """On a GPU the same script times all implementations, shows known peers next to them, and knows the memory."""
    script = load(name)
    out = tmp_path / "x.json"
    assert main(script.__doc__, script.cases, script.table(), ["--device", "cuda", "--quick", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["source"] for row in rows} == ({"run", "table"} if script.table() else {"run"})
    assert all(row["peak_bytes"] > 0 for row in rows if row["source"] == "run")


@pytest.mark.parametrize(
    ("op", "shape", "expected"),
    [
        ("selective_scan", (128, 384, 197, 16), 0.038),
        ("selective_scan", (8, 240, 4096, 1), 0.021),
        ("selective_scan_2d", (4, 360, 64, 64, 16), 0.091),
        ("selective_scan_2d", (128, 96, 56, 56, 1), 0.154),
    ],
)
def test_floor_of_known_shapes(op, shape, expected):
    """The lower bounds of the tables agree with those worked out by hand."""
    floors = {row.floor_ms for row in load(op).table() if row.op == op and row.shape == shape}
    assert list(floors) == [pytest.approx(expected, rel=0.03)]


def test_floor_is_the_larger_of_two_bounds():
    assert floor_ms(3.0e9, 0) == pytest.approx(1.0)
    assert floor_ms(3.0e9, 2 * 4.13e9) == pytest.approx(2.0)


def test_wrong_kernel_is_not_timed(tmp_path, capsys):
    """Over the limit the row carries the error and no times, and the run fails; just under it, it is timed."""
    out = tmp_path / "x.json"
    arguments = ["--device", "cpu", "--out", str(out)]
    assert main("", lambda *_: [squares(1e-2)], [], arguments) == 1
    row, *_ = json.loads(out.read_text())["rows"]
    assert row["fwd_ms"] is None
    assert row["error_ratio"] == pytest.approx(1e-2, rel=1e-3)
    assert "squares (2, 3) torch: error ratio 1.0e-02 is over 1.0e-04" in capsys.readouterr().out
    assert main("", lambda *_: [squares(1e-5)], [], arguments) == 0


def test_nan_is_a_red_check():
    (row,) = run_case(squares(float("nan")), ["torch"])
    assert row.fwd_ms is None
    assert row.error_ratio == float("inf")


def test_wrong_gradient_is_a_red_check():
    """The output alone is not enough."""
    case = squares()
    case.call = lambda x, impl: x["x"].detach() ** 2 + 0 * x["x"] if x["x"].dtype == torch.float32 else x["x"] ** 2
    (row,) = run_case(case, ["torch"])
    assert row.fwd_ms is None
    assert row.error_ratio == pytest.approx(1.0)


def test_peers_are_timed_but_not_judged():
    case = squares()
    case.peers = {"torch_eager": ({"a": torch.ones(3)}, lambda x: x["a"] * 2)}
    ours, peer = run_case(case, ["torch"], repeat=3)
    assert (ours.impl, peer.impl, peer.error_ratio) == ("torch", "torch_eager", None)
    assert peer.fwd_ms is not None


@pytest.mark.parametrize("device", DEVICES)
def test_measure_sees_time_and_memory(device):
    """Much more work takes longer; on a GPU the peak is what the call takes beyond its input: two tensors here."""
    where = torch.device(device)
    small, large = torch.zeros(1024, device=where), torch.zeros(2**22, device=where)
    quick, slow = (measure(lambda x=x: x.cos().sin(), where, repeat=5) for x in (small, large))
    assert quick.median_ms < slow.median_ms
    if device == "cpu":
        assert slow.peak_bytes is None
    else:
        assert slow.peak_bytes == pytest.approx(2 * 4 * 2**22, rel=0.1)


def test_measure_stays_in_its_budget():
    calls = []
    measure(lambda: calls.append(sum(range(100_000))), torch.device("cpu"), repeat=1000, budget_s=0.01)
    assert 3 <= len(calls) <= 40


def test_table_has_a_line_per_row():
    kept = {"op": "scan", "shape": (1, 2), "dtype": "float32", "impl": "torch", "source": "table"}
    text = as_table([Row(**kept, fwd_ms=1.5, bwd_ms=None, floor_ms=0.25)])
    assert text.splitlines()[1].split() == ["scan", "1x2", "float32", "torch", "table", "1.500", "-", "0.250", "-", "-"]


def test_inputs_of_the_benchmark_are_those_of_trained_models():
    """A is random, no power structure that a kernel could use and trained weights do not have."""
    A = scan_inputs(1, 2, 3, 16).A
    assert not torch.allclose(A[:, 1] / A[:, 0], A[:, 3] / A[:, 2])
