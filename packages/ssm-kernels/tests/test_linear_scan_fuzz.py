"""Any sizes, strides, dtypes and combination of arguments: the linear scans by PyTorch equal their definitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import linear_scan, long_conv1d
from ssm_kernels.testing import linear_inputs

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def strided(x, how):
    """Return the same values under other strides."""
    if how == "transposed" and x.dim() > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "last axis first":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if how == "sliced":
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if how == "expanded" and x.dim() > 1:
        return x[:1].expand_as(x)
    return x


HOWS = st.sampled_from(["as is", "transposed", "last axis first", "sliced", "expanded"])


@st.composite
def calls(draw):
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shared, paired, mode = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["scan", "fft"]))
    state = mode == "scan" and draw(st.booleans())
    inputs = linear_inputs(*sizes, shared=shared, paired=paired, state=state, seed=draw(st.integers(0, 99))).kwargs()
    inputs = {name: x for name, x in inputs.items() if x is not None}
    weights = [torch.complex64, torch.complex128] if paired else [torch.float32, torch.float64]
    for name, x in inputs.items():
        kind = draw(st.sampled_from(REAL if name in ("x", "step") else weights))
        inputs[name] = strided(x.to(kind), draw(HOWS))
    options = {"reverse": draw(st.booleans()), "discretization": draw(st.sampled_from(["zoh", "bilinear"]))}
    return inputs, mode, options


def results(inputs, impl, options):
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    keep = "initial_state" in inputs
    found = linear_scan(**leaves, impl=impl, return_final_state=keep, **options)
    outputs = list(found) if keep else [found]
    cotangents = [torch.linspace(-1, 1, t.numel()).to(t.dtype).reshape(t.shape) for t in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    named = {f"output {k}": t for k, t in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(call=calls())
def test_any_scan(call):
    """Both run in the same precision, so they differ by roundings of single precision or of the result's dtype."""
    inputs, mode, options = call
    found, truth = results(inputs, "torch", options | {"mode": mode}), results(inputs, "reference", options)
    wide = 1e-11 if inputs["x"].dtype == torch.float64 else 2e-5
    for name in truth:
        a, b = found[name], truth[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        allowed = max(wide, 2 * torch.finfo(b.dtype).eps) * max(1.0, b.abs().max().item())
        assert (a - b).abs().max().item() <= allowed, name


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 4)),
    lags=st.integers(1, 30),
    back=st.integers(0, 30),
    kind=st.sampled_from(REAL),
    how=HOWS,
    reverse=st.booleans(),
)
def test_any_convolution(sizes, lags, back, kind, how, reverse):
    """With filters shorter and longer than the row, on one side and on both."""
    generator = torch.Generator().manual_seed(0)
    x = strided(torch.randn(sizes, generator=generator).to(kind), how)
    kernels = [torch.randn(sizes[2], n, generator=generator) for n in (lags, back) if n]
    found = []
    for impl in ("torch", "reference"):
        leaves = [t.detach().requires_grad_() for t in (x, *kernels)]
        y = long_conv1d(*leaves[:2], kernel_back=leaves[2] if back else None, reverse=reverse, impl=impl)
        weights = torch.linspace(-1, 1, y.numel()).to(y.dtype).reshape(y.shape)
        grads = torch.autograd.grad(y, leaves, weights, allow_unused=True)
        found.append([y, *grads])
    for ours, theirs in zip(*found, strict=True):
        allowed = max(1e-5, 2 * torch.finfo(theirs.dtype).eps) * max(1.0, theirs.abs().max().item())
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert (ours - theirs).abs().max().item() <= allowed
