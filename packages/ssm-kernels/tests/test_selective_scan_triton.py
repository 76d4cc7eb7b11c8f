"""The Triton kernels of `selective_scan`: in Triton's interpreter on short rows, on a GPU at real sizes.

Both ways through a row are forced, whatever the size would choose: one program per row, or one per chunk.
"""

import functools
from itertools import product

import pytest
import torch
import triton
import triton.language as tl
from ssm_kernels.ops.selective_scan import kernels, kernels_plan, selective_scan
from ssm_kernels.ops.selective_scan.kernels_device_steps import LOG2_E, power
from ssm_kernels.ops.selective_scan_bidirectional import kernels as both_ways
from ssm_kernels.ops.selective_scan_bidirectional import selective_scan_bidirectional
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_inputs

gpu, slow = pytest.mark.gpu, pytest.mark.slow
SPAN = 2  # chunks per program where rows are cut
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def by_kernels(inputs, cotangents, *, chunk, parallel, cu_seqlens=None, reverse=False):
    """Run the launchers under the operator: y, final state, gradients of what was given."""
    tensors = (*inputs.values(), cu_seqlens)
    options = {"chunk": chunk, "span": SPAN if parallel else 0}
    y, final, states = kernels.forward(*tensors, True, reverse, save_states=True, **options)
    grads = kernels.backward(*tensors, True, reverse, states, *cotangents, **options)
    found = {name: g for name, g, x in zip(NAMES, grads, inputs.values(), strict=True) if x is not None}
    return {"y": y, "final": final} | found


def by_definition(inputs, cotangents, *, dtype=None, **options):
    given = {name: x if dtype is None else x.to(dtype) for name, x in inputs.items() if x is not None}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, final = selective_scan(**leaves, dt_softplus=True, return_final_state=True, impl="reference", **options)
    cotangents = [c.to(out) for c, out in zip(cotangents, (y, final), strict=True)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y.detach(), "final": final.detach()} | dict(zip(leaves, grads, strict=True))


def halved(*axes):
    """Cross axes of two values each: every other case, in which all pairs of three axes' values remain, else slow."""
    cases = []
    for which in product((0, 1), repeat=len(axes)):
        values = [axis[i] for axis, i in zip(axes, which, strict=True)]
        cases.append(pytest.param(*values, marks=slow if sum(which) % 2 else ()))
    return cases


def halved_on_the_cpu(switches):
    """As `halved` for on and off; on a GPU all cases."""
    cases = halved(*[(False, True)] * switches)
    here = [pytest.param("cpu", *case.values, marks=case.marks) for case in cases]
    return here + [pytest.param("cuda", *case.values, marks=gpu) for case in cases]


def cotangents_of(inputs, rows):
    generator = torch.Generator().manual_seed(1)
    x, A = inputs["x"], inputs["A"]
    grad_y = torch.randn(x.shape, generator=generator).to(x)
    return grad_y, torch.randn(rows, *A.shape[-2:], generator=generator).to(A)


def assert_parity(inputs, rows=None, *, chunk, parallel, **options):
    cotangents = cotangents_of(inputs, rows or inputs["x"].shape[0])
    truth = by_definition(inputs, cotangents, dtype=torch.float64, **options)
    eager = by_definition(inputs, cotangents, **options)
    found = by_kernels(inputs, cotangents, chunk=chunk, parallel=parallel, **options)
    for name in truth:
        assert_as_accurate(name, found[name], eager[name], truth[name])


SHORT = {  # batch, length, channels, state; groups
    "blocks of four steps and a rest": ((2, 11, 13, 3), None),
    "groups": ((1, 9, 14, 2), 2),
    "one step": ((3, 1, 8, 4), None),
    "one channel": ((4, 13, 1, 3), None),
    "two blocks of channels": ((1, 6, 33, 2), None),
}
REAL = {
    "short rows": ((16, 197, 384, 16), None),
    "long row": ((1, 6085, 96, 16), None),
    "groups": ((2, 1000, 240, 1), 4),
    "odd": ((3, 333, 37, 5), None),
    "large state": ((1, 200, 12, 256), None),
}


@functools.cache
def short_rows(case, reverse):
    """Eager PyTorch's error is taken over eight draws: on one draw of a handful of numbers it is luck."""
    shape, groups = SHORT[case]
    eager, truth = [], []
    for seed in range(8):
        inputs = scan_inputs(*shape, groups=groups, batched_A=case == "groups", seed=seed).kwargs()
        cotangents = cotangents_of(inputs, shape[0])
        eager.append(by_definition(inputs, cotangents, reverse=reverse))
        truth.append(by_definition(inputs, cotangents, dtype=torch.float64, reverse=reverse))
    return inputs, cotangents, eager, truth


# the first both ways in both directions, the others one way in each direction; all of them with --slow
SHORT_WAYS = [
    pytest.param(case, reverse, parallel, marks=slow if number and (reverse == parallel) == bool(number % 2) else ())
    for number, case in enumerate(SHORT)
    for reverse, parallel in product((False, True), repeat=2)
]


@pytest.mark.parametrize(("case", "reverse", "parallel"), SHORT_WAYS)
def test_short_rows(case, reverse, parallel):
    inputs, cotangents, eager, truth = short_rows(case, reverse)
    found = by_kernels(inputs, cotangents, chunk=4, parallel=parallel, reverse=reverse)
    for name, ours in found.items():
        theirs, exact = (torch.stack([results[name] for results in kind]) for kind in (eager, truth))
        allowed = 1.5 * error_ratio(theirs, exact) + torch.finfo(ours.dtype).eps
        assert error_ratio(ours, exact[-1]) <= allowed, name


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", REAL)
def test_real_sizes(case, reverse, parallel, dtype):
    shape, groups = REAL[case]
    inputs = scan_inputs(*shape, groups=groups, dtype=dtype, device="cuda").kwargs()
    inputs["A"] = inputs["A"] * 0.05  # states outlive their chunk
    assert_parity(inputs, chunk=64, parallel=parallel, reverse=reverse)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, parallel):
    assert_parity(scan_inputs(1, 6, 13, 2, dtype=dtype).kwargs(), chunk=4, parallel=parallel)


@pytest.mark.parametrize("found", [1, 2, 100])
def test_pieces_of_a_span(monkeypatch, found):
    """The pass ahead of the walk cuts a span of three chunks further: into one piece, into two and one, into three."""
    inputs = scan_inputs(1, 13, 3, 2).kwargs()
    monkeypatch.setattr(kernels_plan, "WANTED_LOCAL", 2 * found)  # two of the three spans are walked
    cotangents = cotangents_of(inputs, 1)
    tensors = (*inputs.values(), None)
    scan = kernels.prepare(*tensors, True, False, chunk=2, span=3)
    assert scan.pieces == min(found, 3)
    y, final, states = kernels.forward(*tensors, True, False, save_states=True, chunk=2, span=3)
    grads = kernels.backward(*tensors, True, False, states, *cotangents, chunk=2, span=3)
    truth = by_definition(inputs, cotangents, dtype=torch.float64)
    for ours, exact in zip((y, final, *grads), truth.values(), strict=True):
        assert error_ratio(ours, exact) < 1e-6


@pytest.mark.parametrize("parallel", [False, True])
def test_nothing_optional(parallel):
    assert_parity(scan_inputs(2, 6, 13, 2, optional=False).kwargs(), chunk=4, parallel=parallel)


@pytest.mark.parametrize(("where", "own_parameters", "reverse", "parallel"), halved_on_the_cpu(3))
def test_packed(where, parallel, reverse, own_parameters):
    """Empty sequences first, in between and last; chunks never cross a bound."""
    scale, chunk = (1, 4) if where == "cpu" else (50, 64)
    bounds = [scale * b for b in (0, 0, 3, 3, 8, 8)]
    inputs = scan_inputs(1, bounds[-1], 10, 2, groups=1 if where == "cpu" else 2, device=where).kwargs()
    own = scan_inputs(5, 1, 10, 2, batched_A=own_parameters, device=where)
    inputs |= {"A": own.A * 0.05, "D": own.D, "initial_state": own.initial_state}
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=where)
    assert_parity(inputs, 5, chunk=chunk, parallel=parallel, reverse=reverse, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize(("rate", "dt", "parallel"), halved((-1e4, -1e-6), (1e4, -1e4), (False, True)))
def test_extreme_steps_and_rates(dt, rate, parallel):
    inputs = scan_inputs(1, 6, 13, 2).kwargs()
    small = {name: inputs[name] * 1e-2 for name in ("x", "B", "C")}
    inputs |= small | {"dt": torch.full_like(inputs["dt"], dt), "A": torch.full_like(inputs["A"], rate)}
    assert_parity(inputs, chunk=4, parallel=parallel)


def test_softplus_keeps_its_tails():
    """Relative accuracy of log(1 + exp(x)) where it is tiny: a time step of 1e-6 is not 0."""
    dt = torch.tensor([-1e4, -87.0, -30.0, -15.0, -5.0, -1.0, 0.0, 1.0, 19.0, 21.0, 1e4])[:, None, None]
    one = torch.ones_like(dt)
    y = selective_scan(one, dt, torch.zeros(1, 1), one, one, dt_softplus=True, impl="triton")
    torch.testing.assert_close(y, torch.nn.functional.softplus(dt), rtol=3e-7, atol=1e-38)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_buffer_is_written_and_repeats_are_bit_equal(parallel):
    inputs = scan_inputs(1, 5, 4, 2).kwargs()
    cotangents = cotangents_of(inputs, 1)
    clean = by_kernels(inputs, cotangents, chunk=2, parallel=parallel)
    with poisoned_buffers():
        poisoned = by_kernels(inputs, cotangents, chunk=2, parallel=parallel)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


def test_strides_are_followed():
    """Transposed, sliced and expanded inputs, and mixed dtypes, through the operator itself."""
    made = scan_inputs(2, 5, 4, 2).kwargs()
    inputs = made | {
        "x": made["x"].transpose(0, 1).contiguous().transpose(0, 1),
        "z": torch.cat([made["x"], made["z"]], -1)[..., 4:],
        "B": made["B"].movedim(-1, 0).contiguous().movedim(0, -1),
        "dt": made["dt"][:, :1].expand(-1, 5, -1).bfloat16(),
        "A": made["A"].T.contiguous().T.half(),
    }
    cotangents = cotangents_of(inputs, 2)
    truth = by_definition(inputs, cotangents, dtype=torch.float64)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, final = selective_scan(**leaves, dt_softplus=True, return_final_state=True, impl="triton")
    # a gradient of y whose last axis is not contiguous
    grads = torch.autograd.grad([y, final], list(leaves.values()), [cotangents[0].mT.contiguous().mT, cotangents[1]])
    assert error_ratio(y, truth["y"]) < 1e-6
    for (name, x), grad in zip(leaves.items(), grads, strict=True):
        assert (grad.dtype, grad.shape) == (x.dtype, x.shape)
        assert error_ratio(grad, truth[name]) < max(1e-6, torch.finfo(x.dtype).eps), name


def direction(inputs):
    return tuple(inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias"))


@pytest.mark.parametrize(("where", "gated", "parallel"), halved_on_the_cpu(2))
def test_bidirectional(where, parallel, gated):
    shape, chunk = ((2, 5, 13, 2), 2) if where == "cpu" else ((4, 500, 96, 16), 64)
    ahead = scan_inputs(*shape, device=where).kwargs()
    behind = direction(scan_inputs(*shape, device=where, seed=1).kwargs())
    z = ahead["z"] if gated else None
    ahead = direction(ahead)
    grad_y = torch.randn(shape[:3], generator=torch.Generator().manual_seed(1)).to(where)

    options = {"chunk": chunk, "span": SPAN if parallel else 0}
    y, *states = both_ways.forward(ahead, behind, z, True, True, save_states=True, **options)
    grads = both_ways.backward(ahead, behind, z, *states, grad_y, True, True, **options)
    found = [y, *(grads if gated else grads[:-1])]

    def defined(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (*ahead, *behind)]
        gate = None if z is None else z.to(dtype).requires_grad_()
        y = selective_scan_bidirectional(*leaves, z=gate, average=True, impl="reference")
        wanted = [*leaves, gate] if gate is not None else leaves
        return [y.detach(), *torch.autograd.grad(y, wanted, grad_y.to(dtype))]

    for i, (ours, eager, truth) in enumerate(zip(found, defined(torch.float32), defined(torch.float64), strict=True)):
        assert_as_accurate(f"result {i}", ours, eager, truth)


def test_the_way_through_a_row_depends_on_its_size():
    """Many short rows go one by one, few long ones in chunks; forcing either is what the tests above do."""

    def parallel(*shape):
        x = torch.empty(shape[:3], device="meta")
        weights = torch.empty(*shape[:2], shape[3], device="meta")
        A = torch.empty(shape[2], shape[3], device="meta")
        scan = kernels.prepare(x, x, A, weights, weights, None, None, None, None, None, True, False, chunk=64)
        return scan.span > 0

    assert not parallel(128, 197, 384, 16)  # Vim-T at 224 pixels
    assert not parallel(16, 333, 2048, 16)  # muse
    assert not parallel(1, 128, 64, 16)  # two walks of half the row would take no less
    assert parallel(1, 256, 64, 16)
    assert parallel(8, 6085, 384, 16)  # Vim-T at 1248 pixels
    assert parallel(8, 2048, 2048, 16) or parallel(1, 65536, 2048, 16)


@gpu
def test_nothing_compiles_again_for_another_batch_or_length():
    def compiled():
        names = ("forward_kernel", "local_kernel", "carry_kernel", "backward_kernel", "sum_kernel")
        caches = [getattr(kernels, name).device_caches[torch.cuda.current_device()][0] for name in names]
        return sum(map(len, caches))

    counts = []
    for batch, length in ((2, 64), (3, 333), (5, 1000), (1, 4099)):
        for parallel in (False, True):
            inputs = scan_inputs(batch, length, 48, 16, dtype=torch.bfloat16, device="cuda").kwargs()
            by_kernels(inputs, cotangents_of(inputs, batch), chunk=64, parallel=parallel)
        counts.append(compiled())
    assert counts[0] == counts[-1], counts


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_offsets_beyond_two_to_the_31(parallel):
    """The last row begins behind element 2**31; it must equal the same row alone."""
    batch, length, channels = 3, 1 << 15, 1 << 15
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    x, dt = normal(batch, length, channels), normal(batch, length, channels)
    B, C = normal(batch, length, 1), normal(batch, length, 1)
    A = -torch.rand(channels, 1, generator=generator, device="cuda")
    assert batch * length * channels > 2**31
    rest = (None, None, None, None, None, True, False)
    span = SPAN if parallel else 0
    y, final, _ = kernels.forward(x, dt, A, B, C, *rest, save_states=False, chunk=64, span=span)
    last = [t[-1:].clone() for t in (x, dt, B, C)]
    alone = kernels.forward(last[0], last[1], A, last[2], last[3], *rest, save_states=False, chunk=64, span=span)
    assert torch.equal(y[-1:], alone[0])
    assert torch.equal(final[-1:], alone[1])


@gpu
@pytest.mark.slow
def test_gradient_offsets_beyond_two_to_the_31():
    """A row of 2**27 + 77 steps of 16 channels; its tail depends on nothing far away, so it equals the tail alone."""
    length, channels, tail = (1 << 27) + 77, 16, 4096
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    x, dt, grad_y = (normal(1, length, channels) for _ in range(3))
    B, C = normal(1, length, 1), normal(1, length, 1)
    A = torch.full((channels, 1), -4.0, device="cuda")
    assert x.numel() > 2**31

    def gradients(part):
        cut = [t[:, part] for t in (x, dt, B, C)]
        args = (cut[0], cut[1], A, cut[2], cut[3], None, None, None, None, None, True, False)
        states = kernels.forward(*args, save_states=True, chunk=64)[2]
        return kernels.backward(*args, states, grad_y[:, part], None, chunk=64)

    whole, alone = gradients(slice(None)), gradients(slice(-tail, None))
    for name, ours, theirs in zip(NAMES, whole, alone, strict=True):
        if name in ("x", "dt", "B", "C"):
            assert error_ratio(ours[:, -tail // 2 :], theirs[:, -tail // 2 :].double()) < 1e-2, name


@triton.jit
def power_kernel(x, plain, ours, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exponent = tl.load(x + i) * LOG2_E
    tl.store(plain + i, tl.exp2(exponent))
    tl.store(ours + i, power(exponent, False))


@gpu
def test_exponentials_are_not_biased():
    """The decays of states that last: the special-function unit alone is too small on average."""
    x = torch.rand(2**16, device="cuda") * -0.01
    plain, ours = torch.empty_like(x), torch.empty_like(x)
    power_kernel[(2**16 // 1024,)](x, plain, ours, BLOCK=1024)
    truth = x.double().exp()
    assert (plain.double() / truth - 1).mean().item() < -1e-8
    assert abs((ours.double() / truth - 1).mean().item()) < 4e-9
