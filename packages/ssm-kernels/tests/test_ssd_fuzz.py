"""Any sizes, strides, dtypes and combination of arguments: `ssd` by PyTorch equals its definition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.testing.ssd import ssd_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


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


@st.composite
def calls(draw):
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 60))
    share, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width, state = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    bounds = None
    if draw(st.booleans()):
        batch = 1
        bounds = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
        bounds = torch.tensor([0, *bounds, length], dtype=draw(st.sampled_from([torch.int32, torch.int64])))
    inputs = ssd_inputs(
        *(batch, length, share * groups, width, state),
        groups=groups,
        D_per_channel=draw(st.booleans()),
        rows=batch if bounds is None else len(bounds) - 1,
        rate=draw(st.sampled_from([1.0, 0.01])),  # slow states outlive their chunk
        seed=draw(st.integers(0, 99)),
    ).kwargs()
    for name in ("D", "z", "dt_bias", "initial_state"):
        if draw(st.booleans()):
            inputs[name] = None
    hows = st.sampled_from(["as is", "transposed", "last axis first", "sliced", "expanded"])
    for name, x in inputs.items():
        if x is not None:
            inputs[name] = strided(x.to(draw(st.sampled_from(DTYPES))), draw(hows))
    chunk = draw(st.sampled_from([None, 16, 32]))
    return inputs, {"cu_seqlens": bounds, "reverse": draw(st.booleans())}, chunk


def results(inputs, impl, options, chunk=None):
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if x is not None}
    y, final = ssd(**leaves, impl=impl, return_final_state=True, dt_softplus=True, chunk=chunk, **options)
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in (y, final)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y, "final": final} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(call=calls())
def test_any_call(call):
    """Both run in the same precision, so they differ by roundings of the result's dtype at most."""
    inputs, options, chunk = call
    found, truth = results(inputs, "torch", options, chunk), results(inputs, "reference", options)
    wide = 1e-12 if inputs["x"].dtype == torch.float64 else 1e-5
    for name in truth:
        a, b = found[name], truth[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        allowed = max(wide, 2 * torch.finfo(b.dtype).eps) * max(1.0, b.abs().max().item())
        assert (a - b).abs().max().item() <= allowed, name
