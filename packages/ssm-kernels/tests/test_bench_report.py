"""Comparisons with targets, pages that quote results, and plots."""

import sys
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from ssm_kernels.bench import Row, plots, write_report
from ssm_kernels.bench.report import fill_page, quoted
from ssm_kernels.bench.shapes import COSTS, GPU_SHAPES
from ssm_kernels.bench.targets import as_markdown, as_text, compare, must, summary
from ssm_kernels.cli import main

VIM = (128, 384, 197, 16)
ENVIRONMENT = {"GPU": "NVIDIA H100", "torch": "2.11", "git": None, "copy_bytes_per_s": 3e12, "exp2_per_s": 4e12}


def row(impl, fwd_ms, bwd_ms=1.0, *, op="selective_scan", shape=VIM, dtype="bfloat16", source="run", peak=None):
    kept = {"op": op, "shape": shape, "dtype": dtype, "impl": impl, "source": source, "floor_ms": 0.04}
    return Row(**kept, fwd_ms=fwd_ms, bwd_ms=bwd_ms, peak_bytes=peak)


def by_part(*rows):
    return {c.part: c for c in compare(rows)}


def test_ratio_is_theirs_over_ours_and_the_target_is_beside_it():
    found = by_part(row("triton", 0.2, 1.0, peak=100), row("torch", 9.0), row("mamba_ssm", 0.4, 1.1, peak=150))
    assert found["fwd"].ratio == pytest.approx(2.0)
    assert (found["fwd"].must, found["fwd"].verdict) == (1.5, "met")
    assert (found["bwd"].must, found["bwd"].verdict) == (1.2, "missed")
    assert found["memory"].ratio == pytest.approx(1.5)
    assert found["memory"].verdict == "met"
    assert found["fwd+bwd"].ours == pytest.approx(1.2)
    assert summary(list(found.values())) == "Targets: 2 met, 1 missed."


def test_fastest_peer_counts_for_each_pass():
    """For attention it is the faster of eager and fused, which need not be the same forward and backward."""
    op, shape = "window_attention", (512, 8, 196, 196, 40)
    kept = {"op": op, "shape": shape}
    found = by_part(row("torch", 1.0, 1.0, **kept), row("torch_eager", 3, 2, **kept), row("torch_sdpa", 2, 4, **kept))
    assert (found["fwd"].peer, found["bwd"].peer) == ("torch_sdpa", "torch_eager")
    assert (found["fwd"].must, found["bwd"].must) == (2.0, 1.5)


@pytest.mark.parametrize("order", [1, -1])
def test_run_counts_rather_than_the_table(order):
    """Whichever comes first in the file."""
    rows = [row("triton", 1.0), *[row("mamba_ssm", 3.0, source="table"), row("mamba_ssm", 2.0)][::order]]
    assert (by_part(*rows)["fwd"].source, by_part(*rows)["fwd"].theirs) == ("run", 2.0)


def test_results_that_were_refused_are_not_compared():
    assert by_part(row("triton", None, None), row("mamba_ssm", 1.0)) == {}
    assert by_part(row("triton", 1.0), row("mamba_ssm", None, None)) == {}


def test_targets_bind_in_bfloat16_and_on_the_cpu_target_only():
    other = by_part(row("triton", 1.0, dtype="float16"), row("mamba_ssm", 2.0, dtype="float16"))
    assert other["fwd"].must is None
    shape = (2, 192, 1024, 16)
    kept = {"dtype": "float32", "shape": shape}
    cpu = by_part(row("torch", 10.0, 50.0, **kept), row("reference", 40.0, 400.0, **kept))
    assert (cpu["fwd"].must, cpu["fwd"].verdict) == (2.5, "met")
    assert (cpu["fwd+bwd"].must, cpu["fwd+bwd"].ratio) == (5.0, pytest.approx(440 / 60))
    assert cpu["bwd"].must is None


def test_targets_are_those_of_the_issue():
    assert must("selective_scan", (8, 2048, 2048, 16), "fwd", "mamba_ssm") == 1.0
    assert must("selective_scan", (8, 240, 4096, 1), "bwd", "mamba_ssm") == 1.2
    assert must("selective_scan_bidirectional", VIM, "bwd", "mamba_ssm_flip") == 2.5
    assert must("selective_scan_2d", (8, 60, 64, 64, 1), "bwd", "vmamba_oflex") == 1.5
    assert must("SS2D", (8, 60, 64, 64, 1), "fwd", "mamba_ssm") is None


def test_comparison_reads_as_text_and_as_markdown():
    found = list(compare([row("triton", 0.2, 1.0, peak=2**20), row("mamba_ssm", 0.4, 1.1, peak=3 * 2**20)]))
    line = as_text(found).splitlines()[1]
    assert line.split() == [
        *("selective_scan", "Vim-T", "224", "128x384x197x16", "bfloat16", "fwd", "triton", "0.200", "ms"),
        *("mamba_ssm", "0.400", "ms", "run", "2.00", "1.5", "met"),
    ]
    assert as_markdown(found).splitlines()[2] == (
        "| selective_scan | Vim-T 224 | 128x384x197x16 | bfloat16 | mamba_ssm | 0.400 / 0.200 | 2.00 (1.5) "
        "| 1.100 / 1.000 | **1.10 (1.2)** | 3 / 1 | 3.00 (1) |"
    )


@pytest.fixture
def results(tmp_path):
    """A folder of results with one measurement, h100, and nothing else."""
    folder = tmp_path / "results"
    write_report(folder / "h100" / "results.json", [row("triton", 0.2), row("mamba_ssm", 0.4)], ENVIRONMENT)
    sweep = [row("triton", 0.1, shape=(4, 64, 16, 16)), row("mamba_ssm", 0.3, shape=(4, 64, 16, 16))]
    write_report(folder / "h100" / "sweep.json", sweep, ENVIRONMENT)
    return folder


@pytest.fixture
def figure(monkeypatch):
    """A stand-in for matplotlib that keeps what was drawn."""
    made = MagicMock()
    axes = [[MagicMock(), MagicMock()], [MagicMock(), MagicMock()]]
    made.return_value.subplots.side_effect = lambda rows, columns, **_: [line[:columns] for line in axes[:rows]]
    made.axes = axes
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["matplotlib.figure"], "Figure", made, raising=False)
    return made


@pytest.mark.usefixtures("figure")
def test_page_is_filled_between_its_comments_and_nowhere_else(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- ssm-kernels report: h100 speed -->\nold\n<!-- end of report -->\nafter\n")
    assert main(["report", str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- ssm-kernels report: h100 speed -->\n\nGPU NVIDIA H100, torch 2.11\n")
    assert text.endswith("\n<!-- end of report -->\nafter\n")
    assert "old" not in text
    assert "| 0.400 / 0.200 | 2.00 (1.5) |" in text
    assert "fwd ms" not in text  # the speed alone
    assert fill_page(page, results) == text


def test_page_quotes_what_falls_short(results, tmp_path):
    page = tmp_path / "scan.md"
    page.write_text("<!-- ssm-kernels report: h100 missed selective -->\n<!-- end of report -->\n")
    assert "| selective_scan | Vim-T 224 | bwd | mamba_ssm | 1.000 / 1.000 ms | 1.00 | 1.2 | 17% |" in fill_page(
        page, results
    )
    page.write_text("<!-- ssm-kernels report: h100 missed ssd -->\n<!-- end of report -->\n")
    assert "Every target is met." in fill_page(page, results)


@pytest.mark.usefixtures("figure")
def test_page_beside_the_results_gets_a_block_for_each(results):
    """One command after a run is enough; a second run of it changes nothing."""
    page = results / "README.md"
    assert main(["report", str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert quoted(page) == {"h100"}
    for part in (
        "[results.json](h100/results.json)",
        "### selective_scan (batch",
        "### Sweep: forward, N = 16",
        "cliffs",
    ):
        assert part in text
    assert main(["report", str(results), "--page", str(page)]) == 0
    assert page.read_text() == text


@pytest.mark.usefixtures("figure")
def test_page_that_quotes_nothing_known_is_refused(results, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("<!-- ssm-kernels report: b200 -->\n<!-- end of report -->\n")
    assert main(["report", str(results), "--page", str(page)]) == 2
    assert "quotes b200, but" in capsys.readouterr().err


def test_report_prints_results_and_sweep(results, capsys):
    assert main(["report", str(results / "h100")]) == 0
    printed = capsys.readouterr().out
    assert "Targets: 1 met, 1 missed." in printed
    assert "selective_scan, forward, N = 16, bfloat16" in printed
    assert "0.100 (3.00)" in printed


def test_plot_is_a_picture_where_matplotlib_is(results):
    """And a line that says what to install where it is not."""
    rows = [row("triton", 0.2), row("mamba_ssm", 0.4)]
    for draw, name in ((plots.draw_results, "a.png"), (plots.draw_sweep, "b.png")):
        said = draw(rows, ENVIRONMENT, results / name)
        if find_spec("matplotlib"):
            assert said == f"plot: {results / name}"
            assert (results / name).read_bytes().startswith(b"\x89PNG")
        else:
            assert "pip install 'ssm-kernels[bench]'" in said


def test_plot_needs_matplotlib(monkeypatch, results):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plots.draw_sweep([row("triton", 0.2)], ENVIRONMENT, results / "x.png") == plots.HOW


def test_speed_ups_and_roofline_show_every_comparison(figure, results):
    """Bars are the ratios; points are exponentials per second over exponentials per byte, under the roof."""
    plots.draw_results([row("triton", 0.2), row("mamba_ssm", 0.4)], ENVIRONMENT, results / "x.png")
    bars, roof = figure.axes[0]
    assert [call.args[1] for call in bars.barh.call_args_list] == pytest.approx([2.0, 1.0])
    ours, peer, line = (call.args for call in roof.plot.call_args_list)
    assert ours[1] == pytest.approx(128 * 384 * 197 * 16 / 0.2e-3)
    assert peer[1] == pytest.approx(ours[1] / 2)
    assert ours[0] == pytest.approx(384 * 16 / (2 * (4 * 384 + 32)))
    assert max(line[1]) == 4e12


def test_roofline_shows_every_operator_that_evaluates_exponentials(figure, results):
    """Others have no place on it."""
    plots.draw_results([row("triton", 0.2, op=op, shape=GPU_SHAPES[op][0].sizes) for op in COSTS], ENVIRONMENT, results)
    points = figure.axes[0][1].plot.call_args_list[:-1]
    assert {call.kwargs["label"] for call in points} == {
        f"{op}, ours" for op in COSTS if not op.startswith("linear") and not op.endswith("norm")
    }
    assert len({call.kwargs["color"] for call in points}) == len(points)
    assert len(plots.COLOURS) >= len(COSTS)


def test_no_roofline_without_a_gpu(figure, results):
    plots.draw_results([row("torch", 0.2), row("reference", 0.4)], {"GPU": None}, results / "x.png")
    assert figure.return_value.subplots.call_args.args == (1, 1)


def test_sweep_plot_has_a_curve_per_width_and_implementation(figure, results):
    rows = [row(impl, 0.1, shape=(b, 64, n, 16)) for impl in ("triton", "mamba_ssm") for b in (1, 4) for n in (16, 64)]
    plots.draw_sweep(rows, ENVIRONMENT, results / "x.png")
    forward = figure.axes[0][0]
    curves = [call.args for call in forward.plot.call_args_list]
    assert len(curves) == 4
    assert curves[0][0] == (16, 64)
    assert curves[0][1] == pytest.approx((0.1e6 / (64 * 16), 0.1e6 / (64 * 64)))
