"""`ssd_step`: one token at a time gives what the whole row gives."""

import pytest
import torch
import triton
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.ops.ssd_step import ssd_step
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from ssm_kernels.testing.ssd import ssd_inputs

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
IMPLS = ["torch", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS = ("x", "dt", "B", "C", "z")
ZERO = torch.zeros


def token(*shape, **made):
    """Return the arguments of one step by name; without a state the zeros of a beginning."""
    inputs = ssd_inputs(shape[0], 1, *shape[1:], device=DEVICE, **made).kwargs()
    state = inputs.pop("initial_state")
    inputs["state"] = ZERO(shape[0], *shape[1:], device=DEVICE) if state is None else state
    return {name: x[:, 0] if name in TOKENS else x for name, x in inputs.items() if x is not None}


def run(tensors, impl, dtype=None):
    """Return y, the next state and all gradients for random gradients of both."""
    leaves = {n: (x if dtype is None else x.to(dtype)).detach().requires_grad_() for n, x in tensors.items()}
    y, following = ssd_step(**leaves, dt_softplus=True, impl=impl)
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in (y, following)]
    grads = torch.autograd.grad([y, following], list(leaves.values()), cotangents)
    named = {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"y": y.detach(), "next": following.detach(), **named}


CASES = {  # batch, heads, width, state
    "plain": ((3, 5, 7, 16), {}),
    "groups, D per channel": ((2, 6, 20, 3), {"groups": 3, "D_per_channel": True}),
    "large state": ((2, 4, 3, 300), {}),
    "one number": ((2, 8, 1, 1), {}),
    "only what must be": ((2, 8, 5, 4), {"optional": False}),
}


# in the interpreter every case in float32 and one half precision: no line depends on case and dtype; the rest is slow
EVERY_DTYPE = [
    pytest.param(case, dtype, marks=pytest.mark.slow if DEVICE == "cpu" and dtype == DTYPES[1 + i % 2] else ())
    for i, case in enumerate(CASES)
    for dtype in DTYPES
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("case", "dtype"), EVERY_DTYPE, ids=str)
def test_as_accurate_as_the_definition(case, dtype, impl):
    shape, made = CASES[case]
    draws = []
    for seed in range(4):
        tensors = token(*shape, dtype=dtype, seed=seed, **made)
        draws.append((run(tensors, impl), run(tensors, "reference"), run(tensors, "reference", torch.float64)))
    for name in draws[0][0]:
        assert_as_accurate(f"{name} {impl}", *(torch.stack([draw[k][name] for draw in draws]) for k in range(3)))


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_steps_are_the_scan(impl):
    """Seven tokens one by one: every y, the last state, and the gradients through all of them."""
    inputs = ssd_inputs(2, 7, 4, 3, 5, groups=2, device=DEVICE).kwargs()
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, final = ssd(**leaves, dt_softplus=True, return_final_state=True, impl="reference")
    steady = {name: x for name, x in leaves.items() if name not in (*TOKENS, "initial_state")}
    state, steps = leaves["initial_state"], []
    for t in range(7):
        own = {name: leaves[name][:, t] for name in TOKENS}
        step, state = ssd_step(**own, **steady, state=state, dt_softplus=True, impl=impl)
        steps.append(step)
    found = torch.stack(steps, 1)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(state, final)
    expected = torch.autograd.grad(y.square().sum() + final.sum(), list(leaves.values()))
    grads = torch.autograd.grad(found.square().sum() + state.sum(), list(leaves.values()))
    for name, grad, theirs in zip(leaves, grads, expected, strict=True):
        assert error_ratio(grad, theirs) < 2e-6, name


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_the_state_is_not_changed(impl):
    tensors = token(2, 2, 3, 4)
    before = tensors["state"].clone()
    ssd_step(**tensors, impl=impl)
    assert torch.equal(tensors["state"], before)


@pytest.mark.parametrize("impl", IMPLS)
def test_every_buffer_is_written_whatever_the_strides(impl):
    tensors = token(2, 4, 5, 3, groups=2)
    wide = {name: torch.stack([x, x], -1)[..., 0] for name, x in tensors.items()}
    clean = ssd_step(**tensors, impl=impl)
    with poisoned_buffers():
        found = ssd_step(**wide, impl=impl)
    assert all(error_ratio(a, b) < 1e-6 for a, b in zip(found, clean, strict=True))


WRONG = {
    "x": ({"x": ZERO(2, 5)}, "x must be (B, H, P) with every size at least 1, got (2, 5)"),
    "dt": ({"dt": ZERO(2, 3)}, "dt must be (B, H) = (2, 4), got (2, 3)"),
    "A": ({"A": ZERO(4, 1)}, "A must be (H,) = (4,), got (4, 1)"),
    "B rank": ({"B": ZERO(2, 3)}, "B must be (B, G, N) with every size at least 1, got (2, 3)"),
    "B batch": ({"B": ZERO(1, 2, 3)}, "B must be (B, G, N) = (2, 2, 3), got (1, 2, 3)"),
    "B groups": ({"B": ZERO(2, 3, 3)}, "B must be (B, G, N) with G a divisor of H=4, got (2, 3, 3)"),
    "C": ({"C": ZERO(2, 2, 4)}, "C must be the shape of B = (2, 2, 3), got (2, 2, 4)"),
    "D": ({"D": ZERO(5)}, "D must be (H,) or (H, P) = (4,) or (4, 5), got (5,)"),
    "z": ({"z": ZERO(2, 4)}, "z must be (B, H, P) = (2, 4, 5), got (2, 4)"),
    "dt_bias": ({"dt_bias": ZERO(1)}, "dt_bias must be (H,) = (4,), got (1,)"),
    "state": ({"state": ZERO(2, 4, 3, 5)}, "state must be (B, H, P, N) = (2, 4, 5, 3), got (2, 4, 3, 5)"),
    "integer": ({"x": ZERO(2, 4, 5, dtype=torch.int64)}, "x must be float32, bfloat16, float16 or float64, got int64"),
    "device": ({"A": ZERO(4, device="meta")}, "A must be on "),
    "impl": ({"impl": "mamba_ssm"}, "impl must be one of auto, triton, torch, reference"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_argument_is_named(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        ssd_step(**({x: t.cpu() for x, t in token(2, 4, 5, 3, groups=2).items()} | change))
    assert str(caught.value).startswith(f"ssd_step: {message}")
