"""The sweep of selective_scan: its grid, its check, and what it says about cliffs."""

import pytest
import torch
from ssm_kernels.bench import Row, cliffs
from ssm_kernels.bench import sweep as bench_sweep
from ssm_kernels.bench.peers import Peers
from ssm_kernels.bench.sweep import grid, run_point

CPU = torch.device("cpu")


def row(batch, length, fwd_ms, impl="triton", bwd_ms=1.0, state=16):
    kept = {"op": "selective_scan", "dtype": "bfloat16", "source": "run", "floor_ms": None}
    return Row(**kept, shape=(batch, 64, length, state), impl=impl, fwd_ms=fwd_ms, bwd_ms=bwd_ms)


def test_grid_spans_what_was_asked_for():
    """L 16..65536, B * D 256..262144, up to 2^31 elements, 16 states and 1, small sizes first."""
    sizes = grid()
    counts = [batch * channels * length for batch, channels, length, _ in sizes]
    assert counts == sorted(counts)
    assert counts[-1] == 2**31
    assert {s[2] for s in sizes} >= {16, 65536}
    assert {s[0] * s[1] for s in sizes} >= {256, 262144}
    assert {s[3] for s in sizes} == {1, 16}
    assert len(set(sizes)) == len(sizes)


def scan_in_other_layout(u, delta, A, B, C, D, z, delta_bias, delta_softplus, factor=1.0):
    from ssm_kernels import selective_scan

    u, delta, z, B, C = (x.transpose(1, 2) for x in (u, delta, z, B, C))
    y = selective_scan(u, delta, A, B, C, D, z=z, dt_bias=delta_bias, dt_softplus=delta_softplus, impl="torch")
    return y.transpose(1, 2) * factor


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 20, 9, 4)])
def test_point_checks_and_times_both(sizes, dtype):
    rows = list(run_point(sizes, dtype, CPU, None, Peers(scan_in_other_layout), ["mamba_ssm", "torch"]))
    assert [row.impl for row in rows] == ["torch", "mamba_ssm"]
    assert all(row.fwd_ms > 0 and row.bwd_ms > 0 and row.shape == sizes for row in rows)


def test_wrong_peer_is_not_timed():
    def wrong(*args, **kwargs):
        return scan_in_other_layout(*args, **kwargs, factor=1.2)

    (row,) = run_point((2, 9, 5, 2), "bfloat16", CPU, None, Peers(wrong), ["mamba_ssm"])
    assert row.fwd_ms is None
    assert row.error_ratio == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("place", [(0, 0, 0), (-1, -1, -1)], ids=["first", "last"])
def test_check_looks_at_both_ends(place, monkeypatch):
    """Offsets go wrong at the far end of a large tensor, and nowhere else."""
    real = bench_sweep.selective_scan

    def wrong_somewhere(x, *args, **kwargs):
        y = real(x, *args, **kwargs)
        if x.dtype == torch.float64:
            return y
        mask = torch.zeros_like(y)
        mask[place] = 1
        return y + mask * 100

    monkeypatch.setattr(bench_sweep, "selective_scan", wrong_somewhere)
    (row,) = run_point((4, 40, 6, 2), "float32", CPU, None, Peers(), ["torch"])
    assert row.fwd_ms is None


def test_failing_peer_is_left_out(capsys):
    def fails(*args, **kwargs):
        raise RuntimeError("too many elements")

    rows = list(run_point((1, 2, 3, 1), "float32", CPU, None, Peers(fails), ["torch", "mamba_ssm"]))
    assert [row.impl for row in rows] == ["torch"]
    assert "mamba_ssm: too many elements; left out" in capsys.readouterr().out


def test_smooth_times_have_no_cliff():
    """A constant launch time, then time in proportion to size, along both axes."""
    times = {(b, n): max(0.01, 1e-6 * b * 64 * n) for b in (1, 4, 16) for n in (16, 64, 256, 1024)}
    assert cliffs.find_cliffs(row(b, n, t, bwd_ms=3 * t) for (b, n), t in times.items()) == []


def test_step_up_of_time_per_element_is_a_cliff():
    rows = [row(1, 1024, 1.0), row(1, 4096, 4.2), row(1, 16384, 40.0)]
    (cliff,) = [c for c in cliffs.find_cliffs(rows) if c.what == "fwd_ms"]
    assert (cliff.before, cliff.after) == ((1, 64, 4096, 16), (1, 64, 16384, 16))
    assert cliff.factor == pytest.approx(40 / 4.2 / 4)
    assert "triton fwd 1x64x4096x16 -> 1x64x16384x16: time per element times 2.38" in str(cliff)


def test_bump_is_a_cliff_along_the_width_too():
    """A size that takes longer than a larger one."""
    rows = [row(1, 64, 1.0), row(4, 64, 3.9), row(8, 64, 2.0)]
    assert [(c.before[0], c.after[0]) for c in cliffs.find_cliffs(rows) if c.what == "fwd_ms"] == [(4, 8)]


def test_other_states_and_implementations_are_not_neighbours():
    rows = [row(1, 16, 1.0), row(1, 64, 100.0, state=1), row(1, 64, 100.0, impl="mamba_ssm")]
    assert cliffs.find_cliffs(rows) == []


def test_verdict_names_where_the_peer_is_faster():
    rows = [row(1, 16, 1.0), row(1, 64, 2.0), row(1, 16, 2.0, "mamba_ssm"), row(1, 64, 1.0, "mamba_ssm")]
    text = cliffs.verdict(rows, "triton")
    assert "bfloat16 fwd: slower than mamba_ssm at 1 of 2 sizes" in text
    assert "  1x64x64x16: 0.50" in text
    assert "bfloat16 bwd: slower than mamba_ssm at 0 of 2 sizes" in text
    assert "cliffs of triton: none" in text


def test_grid_of_times_has_a_cell_per_size():
    rows = [row(1, 16, 1.0), row(4, 64, 2.0), row(1, 16, 2.5, "mamba_ssm")]
    title, table = next(cliffs.grids(rows, "triton"))
    assert title == "forward, N = 16, bfloat16"
    assert [line.split() for line in table.splitlines()] == [
        ["B*D", "\\", "L", "16", "64"],
        ["64", "1.000", "(2.50)"],
        ["256", "2.000"],
    ]


@pytest.mark.gpu
def test_point_on_a_gpu_knows_memory_and_floor():
    from ssm_kernels.bench.peers import find_peers
    from ssm_kernels.bench.roofline import rates_of

    device = torch.device("cuda")
    peers = find_peers(device)
    impls = ["triton", *(["mamba_ssm"] if peers.scan else [])]
    rows = list(run_point((3, 100, 333, 16), "bfloat16", device, rates_of(device), peers, impls))
    assert [row.impl for row in rows] == impls
    assert all(0 < row.floor_ms < row.fwd_ms and row.peak_bytes > 0 for row in rows)
