"""The explicit gradient of `selective_scan` is the derivative of its output, by finite differences in float64."""

import pytest
import torch
from ssm_kernels.ops.selective_scan import selective_scan
from ssm_kernels.testing import scan_inputs
from torch.autograd import gradcheck

# PyTorch itself makes the gradients of the definition
IMPLS = pytest.mark.parametrize("impl", ["torch", pytest.param("reference", marks=pytest.mark.slow)])


def check(inputs, impl, fast=False, **options):
    given = {name: x.requires_grad_() for name, x in inputs.items() if x is not None}

    def function(*tensors):
        return selective_scan(**dict(zip(given, tensors, strict=True)), impl=impl, return_final_state=True, **options)

    assert gradcheck(function, tuple(given.values()), fast_mode=fast)


@IMPLS
@pytest.mark.parametrize("reverse", [False, True])
def test_all_arguments(impl, reverse):
    inputs = scan_inputs(2, 5, 4, 2, groups=2, dtype=torch.float64).kwargs()
    check(inputs, impl, dt_softplus=True, reverse=reverse)


@IMPLS
def test_own_rates_and_no_softplus(impl):
    inputs = scan_inputs(2, 4, 2, 2, batched_A=True, dtype=torch.float64).kwargs()
    inputs |= {"dt": inputs["dt"].abs() + 2, "dt_bias": inputs["dt_bias"].abs()}
    check(inputs, impl)


@IMPLS
def test_packed(impl):
    inputs = scan_inputs(1, 6, 2, 2, dtype=torch.float64).kwargs()
    rows = scan_inputs(3, 1, 2, 2, batched_A=True, dtype=torch.float64)
    inputs |= {"A": rows.A, "D": rows.D, "initial_state": rows.initial_state}
    check(inputs, impl, dt_softplus=True, cu_seqlens=torch.tensor([0, 4, 4, 6]))


def test_across_chunks():
    """65 and 130 steps: a chunk with a rest, and two chunks that are walked in parallel."""
    for length in (65, 130):
        inputs = scan_inputs(1, length, 1, 1, optional=False, dtype=torch.float64).kwargs()
        check(inputs, "torch", fast=True, dt_softplus=True)


def test_only_the_final_state_is_used():
    """The gradient of the state alone, and of y alone, where the other output is ignored."""
    inputs = scan_inputs(2, 7, 3, 2, dtype=torch.float64).kwargs()
    for output in (0, 1):
        grads = []
        for impl in ("torch", "reference"):
            leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
            out = selective_scan(**leaves, dt_softplus=True, return_final_state=True, impl=impl)[output]
            grads.append(torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True))
        for name, ours, theirs in zip(inputs, *grads, strict=True):
            expected = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_only_what_requires_gradient_gets_one():
    inputs = scan_inputs(1, 5, 2, 2).kwargs()
    A = inputs["A"].requires_grad_()
    selective_scan(**inputs, impl="torch").sum().backward()
    assert A.grad is not None
    assert all(x.grad is None for name, x in inputs.items() if name != "A")


def test_nothing_is_saved_without_gradient(monkeypatch):
    """Inference does not pay for the states that only the backward reads."""
    from ssm_kernels.ops.selective_scan import torch_impl

    kept = []
    forward = torch_impl.forward

    def spy(*args, save_states, chunk):
        kept.append(save_states)
        return forward(*args, save_states=save_states, chunk=chunk)

    monkeypatch.setattr(torch_impl, "forward", spy)
    inputs = scan_inputs(1, 5, 2, 2).kwargs()
    selective_scan(**inputs)
    inputs["x"].requires_grad_()
    with torch.no_grad():
        selective_scan(**inputs)
    selective_scan(**inputs)
    assert kept == [False, False, True]


def test_backward_without_saved_states_recomputes_them():
    """The operator itself may be called with save_states=False and differentiated all the same."""
    inputs = scan_inputs(1, 150, 2, 2, dtype=torch.float64).kwargs()
    grads = []
    for save in (True, False):
        x = inputs["x"].clone().requires_grad_()
        arguments = (*(inputs | {"x": x}).values(), None, True, False, save, "torch")
        y = torch.ops.ssm_kernels.selective_scan.default(*arguments)[0]
        grads.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*grads)


def test_the_reference_differentiates_twice():
    inputs = scan_inputs(1, 3, 2, 2, optional=False, dtype=torch.float64).kwargs()
    x = inputs.pop("x").requires_grad_()
    rest = {name: t for name, t in inputs.items() if t is not None}
    rest["C"] = rest["C"] * 1.0
    (first,) = torch.autograd.grad(selective_scan(x, **rest, impl="reference").square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.isfinite(second).all()
