"""The peers of the benchmark compute what ours compute, in their own layouts; stand-ins replace the CUDA kernels."""

import sys
from types import ModuleType

import pytest
import torch
from ssm_kernels import (
    cross_merge,
    cross_scan,
    depthwise_conv1d,
    depthwise_conv1d_step,
    selective_scan,
    selective_scan_step,
    ssd,
    ssd_step,
)
from ssm_kernels.bench import peers as bench_peers
from ssm_kernels.bench import run_case
from ssm_kernels.bench.case import error_of, truth_of
from ssm_kernels.bench.peers import Peers, cross_merge_copies, cross_scan_copies, find_peers
from ssm_kernels.bench.shapes import CPU_QUICK_SHAPES
from ssm_kernels.bench.suite import make_case
from ssm_kernels.compat.norms import layer_norm_fn

CPU = torch.device("cpu")
EXPECTED = {
    "selective_scan": {"mamba_ssm"},
    "selective_scan_bidirectional": {"mamba_ssm_flip"},
    "selective_scan_2d": {"mamba_ssm"},
    "ssd": {"mamba_ssm"},
    "depthwise_conv1d": {"torch_eager", "causal_conv1d"},
    "layer_norm": {"torch_autocast", "torch_same"},
    "add_rms_norm": {"torch_autocast", "mamba_ssm"},
    "selective_scan_step": {"mamba_ssm"},
    "ssd_step": {"mamba_ssm"},
    "depthwise_conv1d_step": {"causal_conv1d"},
    "window_attention": {"torch_eager", "torch_sdpa"},
    "window_attention_nobias": {"torch_sdpa_nobias"},
    "sliding_window_attention": {"torch_sdpa"},
    "Mamba": {"mamba_ssm"},
    "BidirectionalMamba": {"mamba_ssm_flip"},
    "SS2D": {"mamba_ssm"},
}


def scan_stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """selective_scan_fn's signature and layout, and its demands on dtypes and strides."""
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C))
    u, delta, z = (None if x is None else x.transpose(1, 2) for x in (u, delta, z))
    B, C = (x.transpose(1, 2) if x.dim() == 3 else x.permute(0, 3, 1, 2) for x in (B, C))
    y = selective_scan(u, delta, A, B, C, D, z=z, dt_bias=delta_bias, dt_softplus=delta_softplus, impl="torch")
    return y.transpose(1, 2)


def conv_stand_in(x, weight, bias, activation=None):
    """causal_conv1d_fn's signature and layout."""
    assert x.dtype == weight.dtype == bias.dtype
    y = depthwise_conv1d(x.transpose(1, 2), weight, bias, activation=activation, impl="torch")
    return y.transpose(1, 2).contiguous()


def scan_step_stand_in(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """selective_state_update's signature; the state is written in place. Heads share dt, A, D and bias, as views."""
    if state.dim() == 4:
        shared = {"dt": dt[..., 0], "A": A[:, 0, 0], "D": D[:, 0], "dt_bias": dt_bias[:, 0]}
        y, after = ssd_step(x=x, B=B, C=C, **shared, z=z, state=state, dt_softplus=dt_softplus)
        state.copy_(after)
        return y
    y, after = selective_scan_step(x, dt, A, B, C, D, state=state, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus)
    state.copy_(after)
    return y


def ssd_stand_in(x, dt, A, B, C, chunk_size, D, dt_bias, dt_softplus):
    """mamba_chunk_scan_combined's signature."""
    assert chunk_size == 256
    return ssd(x, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus)


def conv_step_stand_in(x, state, weight, bias, activation):
    """causal_conv1d_update's signature; the state is written in place."""
    assert x.dtype == weight.dtype == bias.dtype
    y, after = depthwise_conv1d_step(x, weight, bias, state=state, activation=activation)
    state.copy_(after)
    return y


ALL = Peers(scan_stand_in, conv_stand_in, scan_step_stand_in, conv_step_stand_in, ssd_stand_in, layer_norm_fn)


def tiny(op, dtype="float32", peers=ALL):
    return make_case(op, CPU_QUICK_SHAPES[op][0].sizes, dtype, CPU, None, peers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", EXPECTED)
def test_peer_computes_the_same(op, dtype):
    """Output and every gradient agree with float64, through the way to and from the peer's layout."""
    case = tiny(op, dtype)
    truth = truth_of(case)
    assert set(case.peers) == EXPECTED[op]
    for name in ("torch", *case.peers):
        assert error_of(case, name, truth) < case.limit(name) / 2, name


@pytest.mark.parametrize("op", EXPECTED)
def test_case_has_no_peer_that_is_not_here(op):
    here = set(tiny(op, peers=Peers()).peers)
    assert here == {name for name in EXPECTED[op] if name.startswith("torch")}


@pytest.mark.parametrize("op", ["selective_scan", "selective_scan_bidirectional", "Mamba", "BidirectionalMamba"])
def test_peer_that_forgets_the_gate_is_red(op):
    """The limits for peers and for whole mixers are wide, but not that wide."""

    def ungated(*args, z=None, **kwargs):
        return scan_stand_in(*args, z=None, **kwargs) + 0 * z

    case = tiny(op, "bfloat16", Peers(ungated))
    (name,) = case.peers
    assert error_of(case, name, truth_of(case)) > case.limit(name)


def test_mixers_use_the_fused_convolution_where_it_is():
    calls = []

    def conv(x, weight, bias, activation=None):
        calls.append(tuple(x.shape))
        return conv_stand_in(x, weight, bias, activation)

    case = tiny("BidirectionalMamba", peers=Peers(scan_stand_in, conv))
    case.peers["mamba_ssm_flip"].call(case.inputs)
    assert calls == [(2, 8, 17), (2, 8, 17)]


def test_step_peer_writes_to_a_state_of_its_own():
    """It writes in place; ours must not see it, and it has no backward time."""
    case = tiny("selective_scan_step")
    before = case.inputs["state"].clone()
    (row,) = run_case(case, ["mamba_ssm"], repeat=3)
    assert torch.equal(case.inputs["state"], before)
    assert row.fwd_ms > 0
    assert row.bwd_ms is None


def test_copies_in_four_orders_are_those_of_vmamba():
    """The directions have the order and the meaning of `cross_scan`, the merge is its adjoint."""
    x = torch.randn(2, 3, 4, 5)
    last = x.permute(0, 2, 3, 1)
    assert torch.equal(cross_scan_copies(x).transpose(2, 3), cross_scan(last))
    y = torch.randn(2, 4, 3, 20)
    merged = cross_merge_copies(y, 4, 5).unflatten(-1, (4, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(merged, cross_merge(y.transpose(2, 3), 4, 5))


def test_mixers_have_the_widths_of_their_models():
    """The inner width is that of the scan's rows; Vim and MambaIR widen by 2, Contrast and VMamba do not."""
    for op, sizes, width in (
        ("BidirectionalMamba", (1, 384, 3, 16), 192),
        ("SS2D", (1, 360, 2, 2, 16), 180),
        ("SS2D", (1, 96, 2, 2, 1), 96),
    ):
        case = make_case(op, sizes, "bfloat16", CPU, None, Peers())
        assert case.inputs["x"].shape[-1] == width
        assert case.inputs["out_proj.weight"].shape == (width, sizes[1])
        assert case.inputs["out_proj.weight"].dtype == torch.bfloat16
        wide = {name for name, x in case.inputs.items() if x.dtype == torch.float32}
        assert wide and all(name.startswith(("A_", "D", "dt_proj")) and "weight" not in name for name in wide)


def fake_package(monkeypatch, name, **content):
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, ModuleType(name)))
    for key, value in content.items():
        setattr(sys.modules[name], key, value)


def test_installed_packages_are_found(monkeypatch):
    fake_package(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=scan_stand_in)
    fake_package(monkeypatch, "mamba_ssm.ops.triton.selective_state_update", selective_state_update=scan_step_stand_in)
    fake_package(monkeypatch, "mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined=ssd_stand_in)
    fake_package(monkeypatch, "mamba_ssm.ops.triton.layer_norm", layer_norm_fn=layer_norm_fn)
    fake_package(monkeypatch, "causal_conv1d", causal_conv1d_fn=conv_stand_in, causal_conv1d_update=conv_step_stand_in)
    assert find_peers(torch.device("cuda")) == ALL


def test_partial_packages_count_as_absent_and_say_why(monkeypatch):
    """Newer builds leave out the Mamba-1 kernel: the package is there, the function is not."""
    fake_package(monkeypatch, "mamba_ssm.ops.selective_scan_interface")
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    found = find_peers(torch.device("cuda"))
    assert (found.scan, found.conv) == (None, None)
    assert "selective_scan_fn" in found.missing["mamba_ssm's selective_scan_fn"]
    assert "mamba_ssm.ops.triton" in found.missing["mamba_ssm's selective_state_update"]
    assert "causal_conv1d" in found.missing["causal_conv1d"]


def test_peers_of_gpus_are_left_out_on_a_cpu():
    assert find_peers(CPU) == Peers(missing=dict.fromkeys(("mamba_ssm", "causal_conv1d"), "runs on NVIDIA GPUs only"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own compiler
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # its backward thread makes its context when it must
@pytest.mark.gpu
@pytest.mark.parametrize("op", EXPECTED)
def test_real_peers_agree_on_a_gpu(op):
    """Whatever can be imported on the machine computes what ours computes, at a size of odd numbers."""
    device = torch.device("cuda")
    by_count = {3: (3, 40, 4), 4: (3, 40, 37, 4), 5: (2, 24, 9, 7, 2), 6: (2, 3, 19, 13, 5, 32)}
    sizes = by_count[len(CPU_QUICK_SHAPES[op][0].sizes)]
    if op == "ssd":
        sizes = (2, 100, 4, 32, 16)
    if op.startswith("window"):
        sizes = (8, 3, 64, 144, 30) if op == "window_attention" else (8, 3, 64, 64, 30)
    case = make_case(op, sizes, "bfloat16", device, None, bench_peers.find_peers(device))
    truth = truth_of(case)
    ours = ("triton", "torch") if case.triton else ("torch",)
    for name in (*ours, *case.peers):
        assert error_of(case, name, truth) < case.limit(name), name
