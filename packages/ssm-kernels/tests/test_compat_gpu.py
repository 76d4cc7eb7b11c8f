"""ssm_kernels.compat on a GPU: half precision in mamba-ssm's layouts against float64 on the CPU, and who computes."""

import pytest
import torch
from ssm_kernels.compat import conv, extensions, inner, scan, ssd, state_update
from ssm_kernels.compat.mamba import Mamba
from ssm_kernels.compat.mamba2 import Mamba2
from ssm_kernels.testing import error_ratio

pytestmark = pytest.mark.gpu
HALF = torch.bfloat16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scan_arguments():
    """B 2, D 12, L 50, N 4, G 2, in the (B, D, L) layout."""
    sequences = {"u": draw(2, 12, 50), "delta": draw(2, 12, 50, seed=1) - 1}
    weights = {"B": draw(2, 2, 4, 50, seed=2), "C": draw(2, 2, 4, 50, seed=3)}
    return sequences | {"A": -draw(12, 4, seed=4).exp()} | weights | {"D": draw(12, seed=5), "delta_bias": draw(12)}


def block_arguments():
    shapes = {"conv1d_weight": (12, 1, 4), "conv1d_bias": (12,), "x_proj_weight": (10, 12)}
    shapes |= {"delta_proj_weight": (12, 2), "out_proj_weight": (6, 12)}
    parameters = {key: draw(*shape, seed=i) / 2 for i, (key, shape) in enumerate(shapes.items())}
    rates = {"A": -draw(12, 4, seed=7).exp(), "D": draw(12, seed=8), "delta_bias": draw(12, seed=9)}
    return {"xz": draw(2, 24, 50)} | parameters | {"out_proj_bias": None} | rates


def ssd_arguments():
    """B 2, L 50, H 4, P 8, G 2, N 16."""
    sequences = {"x": draw(2, 50, 4, 8), "dt": draw(2, 50, 4, seed=1) - 1}
    weights = {"B": draw(2, 50, 2, 16, seed=2), "C": draw(2, 50, 2, 16, seed=3)}
    return sequences | {"A": -draw(4, seed=4).exp()} | weights | {"D": draw(4, seed=5), "dt_bias": draw(4, seed=6)}


CALLS = {
    "selective_scan_fn": (lambda **a: scan.selective_scan_fn(**a, delta_softplus=True), scan_arguments),
    "mamba_inner_fn": (inner.mamba_inner_fn, block_arguments),
    "causal_conv1d_fn": (
        lambda **a: conv.causal_conv1d_fn(**a, activation="silu"),
        lambda: {"x": draw(2, 12, 50), "weight": draw(12, 4, seed=1), "bias": draw(12, seed=2)},
    ),
    "mamba_chunk_scan_combined": (
        lambda **a: ssd.mamba_chunk_scan_combined(**a, chunk_size=64, dt_softplus=True),
        ssd_arguments,
    ),
}
MIXERS = [lambda: Mamba(64), lambda: Mamba2(64, headdim=32, ngroups=2), lambda: Mamba2(64, headdim=16)]
STAYS = ("A", "D", "delta_bias", "dt_bias")  # parameters of the recurrence, float32 in every model


@pytest.mark.parametrize("name", CALLS)
def test_half_precision_on_the_gpu(name):
    """Output and every gradient against float64 on the rounded inputs."""
    call, make = CALLS[name]
    given = {key: None if x is None else (x if key in STAYS else x.to(HALF)) for key, x in make().items()}
    results = []
    for device, wide in (("cuda", False), ("cpu", True)):
        moved = {k: None if x is None else (x.double() if wide else x).to(device) for k, x in given.items()}
        leaves = {key: x.detach().requires_grad_() for key, x in moved.items() if x is not None}
        y = call(**(moved | leaves))
        gradients = torch.autograd.grad(y.double().square().sum(), list(leaves.values()))
        assert y.device.type == device
        results.append({"y": y.detach(), **dict(zip(leaves, gradients, strict=True))})
    for key, value in results[0].items():
        assert error_ratio(value.cpu(), results[1][key]) < 0.02, key


@pytest.mark.parametrize("out_float", [True, False])
def test_oflex_on_the_gpu(out_float):
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    given = {key: x if key in STAYS else x.half() for key, x in scan_arguments().items()}
    half = [given[key].cuda() for key in order]
    exact = [given[key].double() for key in order]
    out, states = extensions.oflex_fwd(*half, True, 1, out_float)
    truth, ends = extensions.oflex_fwd(*exact, True, 1, False)
    assert out.dtype == (torch.float32 if out_float else torch.float16)
    assert error_ratio(out.cpu(), truth) < (1e-5 if out_float else 2e-3)
    assert error_ratio(states[:, :, -1, 1::2].cpu(), ends[:, :, -1, 1::2]) < 1e-5
    got = extensions.core_bwd(*half, torch.ones_like(out), states, True, 1)
    wanted = extensions.core_bwd(*exact, torch.ones_like(truth), ends, True, 1)
    for key, a, b in zip(order, got, wanted, strict=True):
        assert error_ratio(a.cpu(), b) < 2e-3, key


@pytest.mark.parametrize("make", MIXERS)
def test_steps_continue_a_sequence_on_the_gpu(make):
    """The cache that a whole sequence filled goes on token by token, and training gives finite gradients."""
    torch.manual_seed(0)
    mixer, x = make().cuda(), draw(2, 20, 64).cuda()
    mixer.layer_idx = 0
    whole = mixer(x)
    whole.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    states = mixer.allocate_inference_cache(2, 20)
    with torch.no_grad():
        tokens = torch.cat([mixer.step(x[:, t : t + 1], *states)[0] for t in range(20)], 1)
    assert error_ratio(tokens, whole.detach()) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_state_update_on_the_gpu(tied):
    """Both forms: a rate per state, and one per head expanded."""
    steps = {"dt": draw(2, 4, 1), "dt_bias": draw(4, 1, seed=1), "A": -draw(4, 1, 1, seed=2).exp()}
    sizes = {"dt": (2, 4, 8), "dt_bias": (4, 8), "A": (4, 8, 16)}
    rest = {"x": draw(2, 4, 8, seed=3), "B": draw(2, 2, 16, seed=4), "C": draw(2, 2, 16, seed=5), "D": draw(4, 8)}
    ends = []
    for move in (torch.Tensor.cuda, torch.Tensor.double):
        wide = {key: move(t).expand(sizes[key]) for key, t in steps.items()}
        wide = wide if tied else {key: t.contiguous() for key, t in wide.items()}
        state, moved = move(torch.ones(2, 4, 8, 16)), {key: move(t) for key, t in rest.items()}
        y = state_update.selective_state_update(state, **wide, **moved, dt_softplus=True)
        ends.append((y.cpu(), state.cpu()))
    for a, b in zip(*ends, strict=True):
        assert error_ratio(a, b) < 1e-5
