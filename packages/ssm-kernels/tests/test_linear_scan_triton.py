"""The Triton kernels of the linear scans: in Triton's interpreter on short rows, on a GPU at real sizes.

Both ways through a row are forced, whatever the size would choose: whole rows, or spans with carried states.
"""

import pytest
import torch
from ssm_kernels import linear_scan
from ssm_kernels.ops.diagonal_scan import kernels as single
from ssm_kernels.ops.diagonal_scan import torch_impl as single_torch
from ssm_kernels.ops.linear_modes import kernels as modes_kernels
from ssm_kernels.ops.linear_modes import torch_impl as modes_torch
from ssm_kernels.ops.linear_scan import kernels, torch_impl
from ssm_kernels.testing import assert_as_accurate, error_ratio, linear_inputs, poisoned_buffers

NAMES = ("y", "final", "dx", "da", "db", "dc", "dinitial")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def modes(*shape):
    """Decays of all sizes below 1 with all phases, as planes."""
    size, phase = 0.5 + 0.5 * normal(*shape).sigmoid(), 2 * normal(*shape, seed=1)
    return torch.stack([size * phase.cos(), size * phase.sin()])


def arguments(batch, length, channels, count, *, unit=False, dtype=torch.float32):
    x, grad = normal(batch, length, channels).to(dtype), normal(batch, length, channels, seed=2).to(dtype)
    b, state = normal(2, count, channels, seed=3), normal(batch, 2, count, channels, seed=4)
    last = normal(batch, 2, count, channels, seed=5)
    c = normal(2, count, channels, seed=6)
    return (x, modes(count, channels), None if unit else b, c, None if unit else state), grad, None if unit else last


def both(module, tensors, grad, last, reverse, **options):
    """Return outputs and gradients of a forward and a backward."""
    found = (*module.forward(*tensors, reverse, **options), *module.backward(*tensors, grad, last, reverse, **options))
    named = dict(zip(NAMES, found, strict=True))
    if tensors[2] is None:  # the unit of the states is nobody's business then
        named = {name: named[name] for name in ("y", "dx", "da", "dc")}
    return named


@pytest.mark.parametrize(
    ("shape", "span", "unit", "reverse"),
    [
        ((2, 9, 3, 2), None, False, False),
        ((1, 6, 33, 3), None, True, True),
        ((1, 9, 3, 3), 4, False, True),
        ((1, 9, 2, 2), 4, True, False),
    ],
    ids=["whole rows", "no states", "spans", "spans without states"],
)
def test_kernels_are_the_vectorised_form(shape, span, unit, reverse):
    tensors, grad, last = arguments(*shape, unit=unit)
    truth = both(torch_impl, tensors, grad, last, reverse)
    found = both(kernels, tensors, grad, last, reverse, span=span)
    for name in truth:
        assert error_ratio(found[name], truth[name]) < 1e-6, name


def test_more_modes_than_a_program_holds(monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAM_MODES", 2)
    monkeypatch.setattr(kernels, "GRADIENT_MODES", 2)
    tensors, grad, last = arguments(1, 7, 2, 5)
    truth, found = both(torch_impl, tensors, grad, last, False), both(kernels, tensors, grad, last, False)
    for name in truth:
        assert error_ratio(found[name], truth[name]) < 1e-6, name


@pytest.mark.parametrize(
    ("shape", "span", "start", "reverse"),
    [((2, 7, 3), None, True, False), ((1, 9, 3), 4, True, True), ((1, 6, 33), 4, False, False)],
    ids=["whole rows", "spans", "spans from zero"],
)
def test_single_states_are_the_vectorised_form(shape, span, start, reverse):
    batch, length, count = shape
    u, grad, a = normal(batch, length, 2, count), normal(batch, length, 2, count, seed=1), modes(count)
    state = normal(batch, 2, count, seed=2) if start else None
    wanted = single_torch.forward(u, a, state, reverse)
    assert error_ratio(single.forward(u, a, state, reverse, span=span), wanted) < 1e-6
    truth = single_torch.backward(grad, wanted, a, state, False, reverse)
    found = single.backward(grad, wanted, a, state, reverse, span=span)
    for name, ours, theirs in zip(("du", "da", "dinitial"), found, truth, strict=True):
        if name != "dinitial" or start:
            assert error_ratio(ours, theirs) < 1e-6, name


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("unit", [False, True])
def test_discretisation_is_the_vectorised_form(rule, unit):
    """With rates of 0, and slow ones where exp(z) - 1 cancels."""
    rate, into, out, step = modes(3, 50).clone(), normal(2, 3, 50), normal(2, 3, 50, seed=1), normal(50).abs() * 0.3
    rate[0] = -rate[0].abs()
    rate[1] *= 5
    rate[:, 0, :3] = 0
    rate[:, 1, :5] *= 1e-4
    tensors = (rate, into, out, step)
    wanted = modes_torch.forward(*tensors, rule, unit, 2.0, torch.float32)
    found = modes_kernels.forward(*tensors, rule, unit, 2.0)
    grads = [torch.randn_like(t) for t in wanted]
    wanted += modes_torch.backward(*grads, *tensors, rule, unit, 2.0)
    found += modes_kernels.backward(*grads, *tensors, rule, unit, 2.0)
    assert all(error_ratio(ours, theirs) < 1e-7 for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    tensors, grad, last = arguments(1, 9, 3, 2, dtype=dtype)
    x, *rest = tensors
    truth = both(torch_impl, (x.double(), *(t.double() for t in rest)), grad.double(), last, False)
    rounded = both(torch_impl, tensors, grad, last, False)
    found = both(kernels, tensors, grad, last, False)
    for name in truth:
        assert_as_accurate(name, found[name], rounded[name], truth[name])


def test_every_buffer_is_written_and_results_repeat():
    tensors, grad, last = arguments(1, 5, 3, 2)
    first = both(kernels, tensors, grad, last, False, span=4)
    with poisoned_buffers():
        second = both(kernels, tensors, grad, last, False, span=4)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shared", [False, True], ids=["s4d", "s5"])
def test_impl_triton_runs_them(shared):
    inputs = linear_inputs(1, 6, 3, 2, shared=shared).kwargs()
    options = {"return_final_state": True, "discretization": "bilinear"}
    y, final = linear_scan(**inputs, **options, impl="triton")
    wanted, last = linear_scan(**inputs, **options, impl="reference")
    assert error_ratio(y, wanted) < 1e-6
    assert error_ratio(torch.view_as_real(final), torch.view_as_real(last)) < 1e-6


def test_double_precision_is_refused():
    inputs = linear_inputs(1, 6, 3, 2, dtype=torch.float64).kwargs()
    with pytest.raises(ValueError, match="linear_scan: impl='triton' cannot run here: float64"):
        linear_scan(**inputs, impl="triton")


GPU_CASES = [
    (128, 197, 384, 32, False),
    (2, 5000, 70, 16, False),
    (1, 65536, 33, 3, False),
    (4, 1000, 96, 100, False),
    (16, 300, 64, 64, True),
    (1, 40000, 40, 96, True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("batch", "length", "channels", "count", "shared"), GPU_CASES)
def test_real_sizes(batch, length, channels, count, shared, reverse, dtype):
    """Against float64 by matrix products, next to the same in the dtype of the inputs."""
    made = linear_inputs(batch, length, channels, count, shared=shared, dtype=dtype, device="cuda").kwargs()

    def run(inputs, impl):
        leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        y, final = linear_scan(**leaves, return_final_state=True, reverse=reverse, impl=impl)
        grad = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(0), device="cuda").to(y.dtype)
        grads = torch.autograd.grad([y, final], list(leaves.values()), [grad, torch.ones_like(final)])
        found = {"y": y.detach(), "final": final.detach()} | dict(zip(leaves, grads, strict=True))
        return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in found.items()}

    wide = {name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in made.items()}
    truth, eager, found = run(wide, "torch"), run(made, "torch"), run(made, "triton")
    for name in truth:
        assert_as_accurate(name, found[name], eager[name], truth[name], slack=2)
