"""The Triton kernels of `ssd`: in Triton's interpreter on short rows, on a GPU at real sizes.

Every way through the kernels is forced, whatever the size would choose: a program per row or per span of chunks, states
in registers or in memory, all heads at once or some at a time.
"""

import pytest
import torch
from ssm_kernels.ops.ssd import kernels, kernels_plan, ssd
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers
from ssm_kernels.testing.ssd import ssd_inputs

gpu = pytest.mark.gpu
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
DRAWS = 8  # of the eager result, judged together: the error of a few numbers is luck


def cotangents_of(inputs, rows):
    generator = torch.Generator().manual_seed(1)
    x, B, A = inputs["x"], inputs["B"], inputs["A"]
    grad_final = torch.randn(rows, *x.shape[2:], B.shape[-1], generator=generator).to(A)
    return torch.randn(x.shape, generator=generator).to(x), grad_final


def by_kernels(inputs, cotangents, *, span=0, at_once=None, chunk=16, cu_seqlens=None, reverse=False, softplus=True):
    """Run the launchers under the operator: y, final state, gradients of what was given."""
    tensors = (*inputs.values(), cu_seqlens, softplus, reverse)
    y, final = kernels.forward(*tensors, chunk=chunk, span=span)
    grads = kernels.backward(*tensors, *cotangents, chunk=chunk, span=span, heads_at_once=at_once)
    found = {name: g for name, g, x in zip(NAMES, grads, inputs.values(), strict=True) if x is not None}
    return {"y": y, "final": final} | found


def by_definition(inputs, cotangents, *, dtype=None, softplus=True, **options):
    given = {name: x if dtype is None else x.to(dtype) for name, x in inputs.items() if x is not None}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, final = ssd(**leaves, dt_softplus=softplus, return_final_state=True, impl="reference", **options)
    cotangents = [c.to(out) for c, out in zip(cotangents, (y, final), strict=True)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y.detach(), "final": final.detach()} | dict(zip(leaves, grads, strict=True))


def assert_parity(shape, made, *, rows=None, change=lambda inputs: {}, draws=DRAWS, ways=None, **options):
    """Compare the kernels with the definition, in the dtype of the inputs; `ways` are the launchers' own options."""
    eager, truth = [], []
    for seed in range(draws):
        inputs = ssd_inputs(*shape, **made, rows=rows, seed=seed).kwargs()
        inputs |= change(inputs)
        cotangents = cotangents_of(inputs, rows or shape[0])
        eager.append(by_definition(inputs, cotangents, **options))
        truth.append(by_definition(inputs, cotangents, dtype=torch.float64, **options))
    found = by_kernels(inputs, cotangents, **(ways or {}), **options)
    kind = made.get("dtype", torch.float32)
    for name, ours in found.items():
        theirs, exact = (torch.stack([results[name] for results in group]) for group in (eager, truth))
        assert (ours.shape, ours.dtype) == (theirs.shape[1:], theirs.dtype), name
        scale = 1 if ours.dtype == kind else exact.abs().max().clamp_min(1e-30)
        allowed = 1.5 * error_ratio((theirs / scale).to(kind), exact / scale) + torch.finfo(kind).eps
        error = (ours / scale).to(kind).double() - exact[-1] / scale
        size = (
            (exact / scale).square().mean().sqrt().clamp_min(1e-300)
        )  # of all draws: one number's own size is luck, too
        assert (error.square().mean().sqrt() / size).item() <= allowed, name


SHORT = {  # batch, length, heads, width, state
    "two chunks and a rest": ((1, 37, 1, 18, 5), {"rate": 0.1, "D_per_channel": True}),
    "groups": ((1, 5, 4, 2, 3), {"groups": 2, "D_per_channel": True}),
    "a group per head": ((1, 9, 2, 4, 3), {"groups": 2}),
    "one step": ((2, 1, 2, 20, 6), {}),
    "one number": ((1, 18, 1, 1, 1), {"D_per_channel": True}),
}
REAL = {
    "vision": ((8, 197, 6, 64, 64), {}),
    "long row": ((1, 2048, 4, 64, 128), {"rate": 0.02}),
    "groups": ((2, 333, 8, 32, 16), {"groups": 4, "D_per_channel": True}),
    "odd": ((3, 111, 5, 37, 21), {}),
    "small state": ((2, 200, 4, 64, 32), {}),
    "narrow heads": ((2, 200, 4, 32, 128), {"rate": 0.1}),
    "wide heads": ((1, 200, 8, 200, 64), {}),
    "large state": ((1, 200, 8, 48, 300), {}),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", SHORT)
def test_short_rows(case, reverse):
    assert_parity(*SHORT[case], reverse=reverse)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", REAL)
def test_real_sizes(case, reverse, dtype):
    shape, made = REAL[case]
    made = made | {"dtype": dtype, "device": "cuda"}
    assert_parity(shape, made, reverse=reverse, ways={"chunk": 0, "span": None})


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_in_spans(where, reverse):
    """A pass over spans from zero, one that carries, one that starts from what enters; the same from behind."""
    shape = (1, 35, 1, 3, 4) if where == "cpu" else (2, 2000, 3, 64, 128)
    ways = {"span": 2, "chunk": 16 if where == "cpu" else 32}
    assert_parity(shape, {"rate": 0.05, "device": where}, reverse=reverse, ways=ways)


@pytest.mark.parametrize(("groups", "at_once"), [(2, 1), (2, 2), (4, 2)])
def test_heads_a_few_at_a_time(groups, at_once):
    """Half a group, a group, two groups: sums of a group that is taken in two goes are continued."""
    assert_parity((1, 5, 4, 2, 3), {"groups": groups}, ways={"at_once": at_once})


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("span", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(where, span, reverse):
    """Empty sequences first, in between and last; chunks never cross a bound."""
    bounds = [(1 if where == "cpu" else 50) * b for b in (0, 0, 17, 17, 20, 20)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=where)
    shape, made = (1, bounds[-1], 1, 3, 2), {"rate": 0.1, "device": where}
    assert_parity(shape, made, rows=5, reverse=reverse, cu_seqlens=cu_seqlens, ways={"span": span})


@pytest.mark.parametrize("span", [0, 1])
def test_states_that_no_program_holds(monkeypatch, span):
    """N in blocks: states in memory, outputs chunk by chunk; the gradients' two passes over N."""
    monkeypatch.setattr(kernels_plan, "LARGEST_STATE", 16)
    monkeypatch.setattr(kernels_plan, "BLOCK", 16)
    kernels_plan.layout.cache_clear()
    try:
        assert_parity((1, 17, 1, 17, 20), {"rate": 0.1, "dtype": torch.float16}, ways={"span": span})
    finally:
        kernels_plan.layout.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    assert_parity((1, 20, 1, 4, 6), {"dtype": dtype})


@pytest.mark.parametrize("span", [0, 1])
def test_states_in_registers(span):
    """Half precision walks rows with the state in registers: groups, from the end, in spans, packed."""
    made = {"dtype": torch.bfloat16, "rate": 0.1}
    ways = {"span": span}
    assert_parity((1, 19, 2, 4, 6), made | {"groups": 2, "D_per_channel": True}, reverse=True, ways=ways)
    bounds = torch.tensor([0, 0, 17, 17, 20, 20])
    assert_parity((1, 20, 1, 4, 6), made, rows=5, cu_seqlens=bounds, ways=ways)


def test_mixed_dtypes():
    """B and C differ in dtype, x is half precision, dt is not: nothing is rounded to less than it came in."""

    def change(inputs):
        return {"x": inputs["x"].bfloat16(), "z": inputs["z"].bfloat16(), "B": inputs["B"].half()}

    inputs = ssd_inputs(1, 20, 1, 4, 3).kwargs()
    inputs |= change(inputs)
    cotangents = cotangents_of(inputs, 1)
    truth = by_definition(inputs, cotangents, dtype=torch.float64)
    eager, found = by_definition(inputs, cotangents), by_kernels(inputs, cotangents)
    for name in ("y", "final", "x", "dt", "B", "C", "z", "initial_state"):
        assert_as_accurate(name, found[name], eager[name], truth[name], slack=3)


def test_nothing_optional():
    made = {"optional": False}
    assert_parity((1, 18, 1, 3, 2), made, change=lambda i: {"dt": i["dt"].abs()}, softplus=False)


@pytest.mark.parametrize("dt", [1e4, -1e4])
@pytest.mark.parametrize("rate", [-1e4, -1e-6])
def test_extreme_steps_and_rates(dt, rate):
    def change(inputs):
        small = {name: inputs[name] * 1e-2 for name in ("x", "B", "C")}
        return small | {"dt": torch.full_like(inputs["dt"], dt), "A": torch.full_like(inputs["A"], rate)}

    assert_parity((1, 17, 1, 4, 3), {}, change=change)


def strided(x):
    """Return the same numbers with nothing where the kernels would like it."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def test_any_strides():
    inputs = ssd_inputs(2, 5, 2, 3, 4, groups=2).kwargs()
    both = torch.cat([inputs["B"].flatten(2), inputs["C"].flatten(2)], -1)  # as a convolution leaves them
    views = {"B": both[..., :8].unflatten(-1, (2, 4)), "C": both[..., 8:].unflatten(-1, (2, 4))}
    views |= {"x": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)}
    views |= {name: strided(inputs[name]) for name in ("dt", "A", "D", "z", "dt_bias", "initial_state")}
    cotangents = cotangents_of(inputs, 2)
    dense = by_kernels(inputs, cotangents)
    found = by_kernels(inputs | views, [strided(c) for c in cotangents])
    assert all(torch.equal(dense[name], found[name]) for name in dense)


@pytest.mark.parametrize("ways", [{}, {"span": 1, "at_once": 1}])
def test_every_buffer_is_written_and_repeats_are_bit_equal(ways):
    inputs = ssd_inputs(1, 17, 2, 3, 2).kwargs()
    cotangents = cotangents_of(inputs, 1)
    clean = by_kernels(inputs, cotangents, **ways)
    with poisoned_buffers():
        poisoned = by_kernels(inputs, cotangents, **ways)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


def test_operator_runs_the_kernels():
    """`impl="triton"` through the public function, with its gradient, is the launchers' result."""
    inputs = ssd_inputs(1, 17, 1, 3, 2).kwargs()
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, final = ssd(**leaves, dt_softplus=True, return_final_state=True, chunk=16, impl="triton")
    cotangents = cotangents_of(inputs, 1)
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    wanted = by_kernels({name: x.detach() for name, x in inputs.items()}, cotangents)
    found = {"y": y, "final": final} | dict(zip(leaves, grads, strict=True))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def planned(batch, length, heads, width, state):
    x, dt = (torch.empty(batch, length, heads, *tail, dtype=torch.bfloat16, device="meta") for tail in ((width,), ()))
    B = torch.empty(batch, length, 1, state, dtype=torch.bfloat16, device="meta")
    A = torch.empty(heads, device="meta")
    return kernels_plan.prepare(x, dt, A, B, B, None, None, None, None, None, True, False, chunk=0)


def test_heads_at_once_bound_what_the_backward_needs():
    """States, adjoints and partial sums of 64 heads would be several times x; a divisor of the heads is taken."""
    at_once = planned(8, 2048, 64, 64, 128).heads_at_once()
    each = 2 * (8 * 32 * 64 * 128 + 8 * 2048 * 128) * 2
    assert 64 % at_once == 0
    assert at_once * each <= 2 * (8 * 2048 * 64 * 64) * 2 < 2 * at_once * each


def test_offsets_are_wide_where_rows_are_large():
    assert not planned(1, 1000, 8, 64, 64).flags["WIDE"]
    assert planned(1, 2**23, 8, 64, 64).flags["WIDE"]


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 64), (torch.float16, 32)], ids=str)
def test_tiles_on_a_gpu_have_rows_of_128_bytes(monkeypatch, dtype, least):
    """Products on Hopper read behind narrower ones, which ends the process where nothing lies there."""
    monkeypatch.setattr(kernels_plan.triton.knobs.runtime, "interpret", False)
    plan = kernels_plan.layout.__wrapped__(4, 1, 8, 8, 0, (dtype,) * 3)
    sizes = [options[name] for options in (plan.forward, plan.walk, plan.backward) for name in ("BLOCK_P", "BLOCK_N")]
    assert min(sizes) == least
