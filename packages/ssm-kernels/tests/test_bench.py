"""ssm_kernels.bench: it times what is right, refuses what is wrong, and says what it measured."""

from pathlib import Path

import pytest
import torch
from ssm_kernels.bench import (
    Case,
    Peer,
    Row,
    as_table,
    floor_ms,
    harness,
    measure,
    read_report,
    roofline,
    run_case,
    write_report,
)
from ssm_kernels.bench.inputs import Maker, scan_2d_tensors, scan_tensors
from ssm_kernels.bench.rows import gigabytes_per_s
from ssm_kernels.bench.shapes import CPU_QUICK_SHAPES, CPU_SHAPES, GPU_SHAPES, LEGEND, cost
from ssm_kernels.bench.suite import table_rows

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def squares(error=0.0, device="cpu"):
    """A case whose "torch" implementation is off by a factor 1 + error, in output and gradient."""

    def call(x, impl):
        # float64 inputs are those of the truth
        return x["x"] ** 2 * (1 + (error if x["x"].dtype != torch.float64 else 0))

    x = torch.arange(1.0, 7.0, device=device).view(2, 3)
    return Case("squares", (2, 3), "float32", {"x": x}, call, 0.5, triton=False)


def first(case, impl="torch"):
    return next(iter(run_case(case, [impl], repeat=3)))


def test_right_kernel_is_timed():
    row = first(squares(1e-5))
    assert row.fwd_ms > 0
    assert row.bwd_ms > 0
    assert row.error_ratio == pytest.approx(1e-5, rel=0.1)
    assert (row.floor_ms, row.source) == (0.5, "run")


def test_wrong_kernel_is_not_timed():
    """Over the limit the row carries the error and no times."""
    row = first(squares(1e-2))
    assert (row.fwd_ms, row.bwd_ms, row.floor_ms) == (None, None, None)
    assert row.error_ratio == pytest.approx(1e-2, rel=1e-3)


def test_nan_is_a_red_check():
    row = first(squares(float("nan")))
    assert row.fwd_ms is None
    assert row.error_ratio == float("inf")


def test_wrong_gradient_is_a_red_check():
    """The output alone is not enough."""
    case = squares()
    case.call = lambda x, impl: x["x"].detach() ** 2 + 0 * x["x"] if x["x"].dtype == torch.float32 else x["x"] ** 2
    row = first(case)
    assert row.fwd_ms is None
    assert row.error_ratio == pytest.approx(1.0)


def transposed(factor=1.0):
    """A peer of `squares` with its own layout."""
    return Peer(
        call=lambda x: x["x"] ** 2 * factor,
        prepare=lambda x: {"x": x["x"].t()},
        restore=lambda y: y.t(),
    )


def test_peer_is_checked_through_its_layout():
    """Output and gradient are compared in our layout, and what is timed starts from its own."""
    case = squares()
    case.peers = {"other": transposed()}
    row = first(case, "other")
    assert row.error_ratio < 1e-6
    assert row.fwd_ms > 0
    assert case.peers["other"].inputs(case.inputs)["x"].shape == (3, 2)


def test_wrong_peer_is_not_timed():
    """A peer that computes something else would make the comparison worthless."""
    case = squares()
    case.peers = {"other": transposed(1.01)}
    row = first(case, "other")
    assert row.fwd_ms is None
    assert row.error_ratio == pytest.approx(1e-2, rel=1e-3)


def test_failing_peer_does_not_stop_the_others():
    def fails(x):
        raise RuntimeError("unsupported head dim")

    case, said = squares(), []
    case.peers = {"broken": Peer(fails), "other": transposed()}
    rows = list(run_case(case, ["broken", "other"], 3, complain=said.append))
    assert [row.impl for row in rows] == ["other"]
    assert said == ["squares (2, 3) float32 broken: unsupported head dim; left out"]


def test_failing_kernel_of_ours_is_an_error():
    case = squares()

    def call(x, impl):
        if x["x"].dtype == torch.float32:
            raise RuntimeError("illegal")
        return x["x"] ** 2

    case.call = call
    with pytest.raises(RuntimeError, match="illegal"):
        first(case)


def test_run_stops_between_implementations():
    """A budget is asked for before each; what was measured until then stays."""
    asked = iter([False, False, True])
    rows = list(run_case(squares(), ["torch", "reference"], 3, done=lambda: next(asked)))
    assert [row.impl for row in rows] == ["torch"]


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
    (row,) = table_rows(op, shape, "bfloat16", [], roofline.H100)
    assert row.floor_ms == pytest.approx(expected, rel=0.03)


def test_floor_is_the_larger_of_two_bounds():
    assert floor_ms(3.0e9, 0) == pytest.approx(1.0)
    assert floor_ms(3.0e9, 2 * 4.13e9) == pytest.approx(2.0)
    assert floor_ms(3.0e9, 0, roofline.Rates(6.0e12, 1.0)) == pytest.approx(0.5)


def test_every_shape_has_the_sizes_of_its_legend():
    """A size too many would shift what the columns mean."""
    for group in (GPU_SHAPES, CPU_SHAPES, CPU_QUICK_SHAPES):
        assert set(group) == set(LEGEND)
        for op, shapes in group.items():
            assert all(len(shape.sizes) == len(LEGEND[op].split(", ")) for shape in shapes)
    assert all(any(shape.quick for shape in shapes) for shapes in GPU_SHAPES.values())


def test_table_is_left_out_where_the_peer_ran():
    shape = (128, 384, 197, 16)
    assert [row.impl for row in table_rows("selective_scan", shape, "bfloat16", [], None)] == ["mamba_ssm"]
    assert table_rows("selective_scan", shape, "bfloat16", ["mamba_ssm"], None) == []
    assert table_rows("selective_scan", shape, "float32", [], None) == []


@pytest.mark.parametrize("device", DEVICES)
def test_measure_sees_time_and_memory(device):
    """Much more work takes longer; on a GPU the peak is what the call takes beyond its input: two tensors here."""
    where = torch.device(device)
    small, large = torch.zeros(1024, device=where), torch.zeros(2**22, device=where)
    quick, slow = (measure(lambda x=x: x.cos().sin(), where, repeat=5) for x in (small, large))
    assert quick.median_ms < slow.median_ms
    if device == "cpu":
        assert (slow.peak_bytes, slow.host_us) == (None, None)
    else:
        assert slow.peak_bytes == pytest.approx(2 * 4 * 2**22, rel=0.1)
        assert 1 < slow.host_us < 1e5


def test_measure_stays_in_its_budget(monkeypatch):
    """20 calls of 10 ms in 0.05 s are five after the warm-up; three of 1 s do not fit, so one counts."""
    now = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def calls(seconds):
        count = [0]

        def work():
            count[0] += 1
            now[0] += seconds

        timing = measure(work, CPU, repeat=20, budget_s=0.05)
        assert timing.median_ms == pytest.approx(seconds * 1e3)
        return count[0]

    assert calls(0.0099) == 2 + 5
    assert calls(1.0) == 2


@pytest.mark.gpu
def test_rates_of_a_gpu_are_plausible():
    """On an H100 the measured constants; the general way agrees with them to a tenth there."""
    device = torch.device("cuda")
    rates = roofline.rates_of(device)
    assert 1e11 < roofline._copy_rate(device) < 2e13
    assert 1e10 < rates.exp2_per_s < 1e14
    if "H100" in torch.cuda.get_device_name():
        assert roofline._copy_rate(device) == pytest.approx(rates.copy_bytes_per_s, rel=0.15)


def test_table_has_a_line_per_row():
    kept = {"op": "selective_scan", "shape": (128, 384, 197, 16), "dtype": "bfloat16", "impl": "x", "source": "table"}
    row = Row(**kept, fwd_ms=1.5, bwd_ms=None, floor_ms=0.15)
    line = as_table([row]).splitlines()[1]
    assert line.split()[:7] == ["selective_scan", "Vim-T", "224", "128x384x197x16", "bfloat16", "x", "table"]
    assert line.split()[7:] == ["1.500", "-", "0.150", "10%", "53", "-", "-", "-"]
    moved = (4 * 384 + 32) * 128 * 197 * 2
    assert gigabytes_per_s(row) == pytest.approx(moved / 1.5e-3 / 1e9)


def test_report_reads_back_what_was_written(tmp_path):
    row = Row(op="a", shape=(1, 2), dtype="float32", impl="b", source="run", fwd_ms=1.0, bwd_ms=2.0, floor_ms=None)
    path = tmp_path / "made" / "x.json"
    write_report(path, [row], {"GPU": None, "torch": "2"})
    assert read_report(path) == ([row], {"GPU": None, "torch": "2"})
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"op": 1}], "environment": {}}', '{"rows": []}'])
def test_other_json_is_refused(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a report"):
        read_report(path)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_of_the_benchmark_are_those_of_trained_models(device):
    """A is random, no power structure that a kernel could use; parameters are float32; the same on every run."""
    where = torch.device(device)
    made = scan_tensors(Maker(where, torch.bfloat16), 2, 3, 5, 16)
    A = made["A"]
    assert not torch.allclose(A[:, 1] / A[:, 0], A[:, 3] / A[:, 2])
    assert {name for name, x in made.items() if x.dtype == torch.float32} == {"A", "D", "dt_bias"}
    again = scan_tensors(Maker(where, torch.bfloat16), 2, 3, 5, 16)
    assert all(torch.equal(made[name], again[name]) for name in made)
    picture = scan_2d_tensors(Maker(where, torch.float16), 1, 2, 3, 4, 5, 4)
    assert picture["dt"].shape == (1, 2, 3, 4, 4)
    assert {name for name, x in picture.items() if x.dtype == torch.float32} == {"A", "D", "dt_bias"}


def test_cost_counts_each_number_once():
    """(1, 2, 3, 1): x, dt, z, y of six numbers each, B and C of three; a state has one exponential a step."""
    assert cost("selective_scan", (1, 2, 3, 1), 2).moved_bytes == (4 * 6 + 2 * 3) * 2
    assert cost("selective_scan_bidirectional", (1, 2, 3, 1), 2).exponentials == 2 * 6
    assert cost("SS2D", (1, 2, 3, 3, 1), 2) is None
