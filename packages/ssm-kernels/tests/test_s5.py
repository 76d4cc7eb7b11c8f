"""The S5 module: one model for all channels, whose states are those of a dense system with HiPPO blocks."""

import pytest
import torch
from ssm_kernels.nn import S5
from ssm_kernels.nn.hippo import hippo_legs
from ssm_kernels.testing import error_ratio

KINDS = {
    "scan": {"d_state": 8},
    "fft": {"d_state": 8, "mode": "fft"},
    "blocks": {"d_state": 12, "blocks": 3, "discretization": "bilinear"},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def tokens(batch=2, length=20, channels=6):
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(0))


def test_first_state_matrix_is_blocks_of_the_normal_part_of_hippo():
    """The kept half of the modes, with its conjugates, has the eigenvalues of A + P P^T, once per block."""
    model = S5(6, d_state=12, blocks=3)
    A, _ = hippo_legs(4)
    root = (torch.arange(4, dtype=torch.float64) + 0.5).sqrt()
    wanted = torch.linalg.eigvals(A + torch.outer(root, root)).imag.sort()[0][2:].repeat(3)
    assert torch.allclose(model.A_imag.double(), wanted, atol=1e-5)
    assert torch.allclose(-model.log_A_real.exp(), torch.full((6,), -0.5), atol=1e-6)
    assert model.B_real.shape == (6, 6)
    assert model.C_real.shape == (6, 6)


def test_one_block_is_the_real_system_that_it_stands_for():
    """Without discretisation in the way: the product C B is that of the real matrices that were drawn."""
    torch.manual_seed(0)
    model = S5(5, d_state=8)
    torch.manual_seed(0)
    B, C = torch.randn(8, 5) / 5**0.5, torch.randn(5, 8) / 8**0.5
    product = 2 * (torch.complex(model.C_real, model.C_imag) @ torch.complex(model.B_real, model.B_imag)).real
    assert torch.allclose(product, C @ B, atol=1e-5)


@EVERY
def test_step_by_step_is_the_module(kind):
    model, x = S5(6, **KINDS[kind]), tokens()
    state, rows = model.initial_state(2), []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        rows.append(y)
    assert error_ratio(torch.stack(rows, 1), model(x)) < 1e-5


@EVERY
def test_causal_or_both_sides(kind):
    for both in (False, True):
        model, x = S5(6, **KINDS[kind], bidirectional=both), tokens().requires_grad_()
        (grad,) = torch.autograd.grad(model(x)[:, 10].sum(), x)
        assert grad[:, :11].abs().amax((0, 2)).min() > 0
        future = grad[:, 11:].abs().amax((0, 2))
        assert future.min() > 1e-6 if both else future.max() < 1e-5


@EVERY
def test_tied_bidirectional_module_turns_round_with_its_input(kind):
    model, x = S5(6, **KINDS[kind], bidirectional=True), tokens()
    for part in ("real", "imag"):
        getattr(model, f"C_b_{part}").data.copy_(getattr(model, f"C_{part}"))
    assert error_ratio(model(x.flip(1)).flip(1), model(x)) < 1e-5


@EVERY
def test_trains_and_stays_stable(kind):
    torch.manual_seed(0)
    model = S5(6, **KINDS[kind], bidirectional=True)
    x, wanted = tokens(4, 16), torch.tanh(tokens(4, 16).cumsum(1))
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-2), []
    for _ in range(12):
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert (-model.log_A_real.exp() < 0).all()


def test_at_twice_the_resolution():
    torch.manual_seed(1)
    model = S5(6, d_state=8, project=False)
    model.D.data.zero_()
    model.log_step.data.fill_(-4.0)
    time = torch.arange(400) / 400
    signal = torch.stack([torch.sin((3 + k) * time) for k in range(6)], 1)[None]
    coarse, fine = model(signal[:, ::2]), model(signal, step_scale=0.5)[:, ::2]
    assert error_ratio(fine, coarse) < 0.05
    assert error_ratio(model(signal)[:, ::2], coarse) > 0.2


def test_half_precision_and_autocast():
    model = S5(6, d_state=8)
    y = model(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens())
    assert error_ratio(half, y) < 2e-2
    cast = model.bfloat16()(tokens().bfloat16())
    assert cast.dtype == torch.bfloat16
    assert torch.isfinite(cast).all()


def test_errors():
    with pytest.raises(ValueError, match=r"S5: x must be \(B, L, 6\), got \(20, 6\)"):
        S5(6)(tokens()[0])
    with pytest.raises(ValueError, match=r"S5: d_state must be a multiple of 2 \* blocks = 6, got 8"):
        S5(6, d_state=8, blocks=3)
    with pytest.raises(ValueError, match="S5: blocks must be at least 1, got 0"):
        S5(6, blocks=0)
    model = S5(6, bidirectional=True)
    with pytest.raises(ValueError, match=r"S5.step: bidirectional must be False, got True"):
        model.step(tokens()[:, 0], model.initial_state(2))
