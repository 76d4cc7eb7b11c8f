"""The Triton kernels for one state per channel: in Triton's interpreter on short rows, on a GPU at real sizes."""

import pytest
import torch
from ssm_kernels import selective_scan, selective_scan_2d, selective_scan_bidirectional
from ssm_kernels.ops.selective_scan import kernels, kernels_single, kernels_sums
from ssm_kernels.ops.selective_scan.kernels_single_plan import TALLEST, magic, suits
from ssm_kernels.ops.selective_scan_2d import DIRECTIONS
from ssm_kernels.ops.selective_scan_2d import kernels as in_plane
from ssm_kernels.ops.selective_scan_bidirectional import kernels as both_ways
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_2d_inputs, scan_inputs

gpu = pytest.mark.gpu
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def by_kernels(inputs, cotangents, *, chunk, span, reverse=False, softplus=True):
    """Run the launchers under the operator: y, final state, gradients of what was given."""
    tensors, options = (*inputs.values(), None), {"chunk": chunk, "span": span}
    y, final, states = kernels_single.forward(*tensors, softplus, reverse, save_states=True, **options)
    grads = kernels_single.backward(*tensors, softplus, reverse, states, *cotangents, **options)
    given = zip(NAMES, grads, inputs.values(), strict=True)
    return {"y": y, "final": final} | {name: grad for name, grad, x in given if x is not None}


def by_definition(inputs, cotangents, dtype=None, *, softplus=True, **options):
    given = {name: x if dtype is None else x.to(dtype) for name, x in inputs.items() if x is not None}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, final = selective_scan(**leaves, dt_softplus=softplus, return_final_state=True, impl="reference", **options)
    cotangents = [c.to(out) for c, out in zip(cotangents, (y, final), strict=True)]
    grads = torch.autograd.grad([y, final], list(leaves.values()), cotangents)
    return {"y": y.detach(), "final": final.detach()} | dict(zip(leaves, grads, strict=True))


def cotangents_of(inputs):
    generator = torch.Generator().manual_seed(1)
    x, A = inputs["x"], inputs["A"]
    grad_y = torch.randn(x.shape, generator=generator).to(x)
    return grad_y, torch.randn(x.shape[0], *A.shape[-2:], generator=generator).to(A)


def assert_parity(inputs, *, chunk, span, **options):
    cotangents = cotangents_of(inputs)
    found = by_kernels(inputs, cotangents, chunk=chunk, span=span, **options)
    eager = by_definition(inputs, cotangents, **options)
    truth = by_definition(inputs, cotangents, torch.float64, **options)
    for name, exact in truth.items():
        assert_as_accurate(name, found[name], eager[name], exact)


CASES = {  # batch, length, channels; groups, options of the inputs, span, reverse, softplus
    "whole rows and a rest": ((2, 11, 32), None, {"batched_A": True}, 0, False, True),
    "spans, reversed, groups": ((1, 13, 40), 2, {}, 1, True, True),
    "spans of two chunks, two blocks of channels": ((1, 11, 33), None, {}, 2, False, True),
    "nothing optional": ((1, 9, 32), None, {"optional": False}, 1, False, True),
    "no softplus": ((1, 6, 32), None, {}, 0, True, False),
    "one step": ((2, 1, 32), None, {}, None, False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_the_definition(case):
    shape, groups, made, span, reverse, softplus = CASES[case]
    inputs = scan_inputs(*shape, 1, groups=groups, **made).kwargs()
    if not softplus:
        inputs["dt"] = inputs["dt"].abs()
        inputs["dt_bias"] = inputs["dt_bias"].abs() * 0.1
    assert_parity(inputs, chunk=4, span=span, reverse=reverse, softplus=softplus)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    assert_parity(scan_inputs(1, 9, 13, 1, dtype=dtype).kwargs(), chunk=4, span=1)


IMAGES = [((1, 2, 5, 32), 0), ((1, 5, 2, 32), 1), ((1, 1, 9, 32), 0), ((1, 9, 1, 32), 2)]


@pytest.mark.parametrize(("shape", "span"), IMAGES, ids=str)
def test_images(shape, span):
    """Tiles and spans that end in the middle of rows and columns, wide and high images, and lines."""
    args = tuple(scan_2d_inputs(*shape, 1).kwargs().values())
    grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    options = {"chunk": 4, "span": span}
    y, states = in_plane.forward(*args, True, (0, 1, 2, 3), save_states=True, **options)
    found = [y, *in_plane.backward(*args, True, (0, 1, 2, 3), states, grad_y, **options)]

    def defined(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in args]
        y = selective_scan_2d(*leaves, impl="reference")
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))]

    for i, results in enumerate(zip(found, defined(torch.float32), defined(torch.float64), strict=True)):
        assert_as_accurate(f"result {i}", *results)


def test_bidirectional():
    """The second direction adds to the first ahead of the gate, and both halves of the gate's gradient add up."""

    def direction(inputs):
        return tuple(inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias"))

    given = scan_inputs(1, 9, 4, 1).kwargs()
    ahead, z, behind = direction(given), given["z"], direction(scan_inputs(1, 9, 4, 1, seed=1).kwargs())
    grad_y = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(1))
    y, *states = both_ways.forward(ahead, behind, z, True, True, save_states=True, chunk=4, span=1)
    found = [y, *both_ways.backward(ahead, behind, z, *states, grad_y, True, True, chunk=4, span=1)]
    leaves = [t.double().requires_grad_() for t in (*ahead, *behind, z)]
    truth = selective_scan_bidirectional(*leaves[:-1], z=leaves[-1], average=True, impl="reference")
    for ours, exact in zip(found, [truth, *torch.autograd.grad(truth, leaves, grad_y.double())], strict=True):
        assert error_ratio(ours, exact.detach()) < 1e-6


def test_every_buffer_is_written_and_repeats_are_bit_equal():
    inputs = scan_inputs(1, 11, 1, 1).kwargs()
    cotangents = cotangents_of(inputs)
    clean = by_kernels(inputs, cotangents, chunk=4, span=1)
    with poisoned_buffers():
        poisoned = by_kernels(inputs, cotangents, chunk=4, span=1)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


@pytest.mark.parametrize("dt", [1e4, -1e4])
@pytest.mark.parametrize("rate", [-1e4, -1e-6])
def test_extreme_steps_and_rates(dt, rate):
    """Decays of 0 and 1: everything stays finite and right."""
    inputs = scan_inputs(1, 6, 4, 1, dtype=torch.bfloat16).kwargs()
    inputs |= {name: inputs[name] * 1e-2 for name in ("x", "B", "C")}
    inputs |= {"dt": torch.full_like(inputs["dt"], dt), "A": torch.full_like(inputs["A"], rate)}
    assert_parity(inputs, chunk=4, span=1)


def test_softplus_in_half_precision_keeps_its_tails():
    """log(1 + exp(v)) is a polynomial there; the final state of one step is delta itself, in float32."""
    dt = torch.tensor([-80.0, -30.0, -15.0, -5.0, -1.0, -0.01, 0.0, 0.3, 1.0, 19.0, 21.0, 1e4]).bfloat16()[None, None]
    one = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    args = (torch.ones_like(dt), dt, torch.zeros(12, 1), one, one, None, None, None, None, None, True, False)
    final = kernels_single.forward(*args, save_states=False, chunk=4)[1]
    exact = torch.logaddexp(dt.double(), torch.zeros(()).double())
    torch.testing.assert_close(final[0, :, 0].double(), exact[0, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(final[0, 3:, 0].double(), exact[0, 0, 3:], rtol=6e-7, atol=0)


def test_strides_are_followed():
    """Inputs that are slices, expanded, or have time ahead of the batch; and mixed dtypes."""
    made = scan_inputs(2, 5, 4, 1).kwargs()
    inputs = made | {
        "x": made["x"].transpose(0, 1).contiguous().transpose(0, 1),
        "z": torch.cat([made["x"], made["z"]], -1)[..., 4:],
        "B": torch.cat([made["B"], made["C"], made["B"]], -1)[..., 2:],
        "dt": made["dt"][:, :1].expand(-1, 5, -1).bfloat16(),
        "A": made["A"].half(),
    }
    cotangents = cotangents_of(inputs)
    found = by_kernels(inputs, (cotangents[0].mT.contiguous().mT, cotangents[1]), chunk=4, span=0)
    for name, exact in by_definition(inputs, cotangents, torch.float64).items():
        kind = inputs[name].dtype if name in inputs else torch.float32
        assert found[name].dtype == kind
        assert error_ratio(found[name], exact) < max(1e-6, torch.finfo(kind).eps), name


def test_which_calls_go_here(monkeypatch):
    """One state per channel does, in the operator too; packed sequences, more states and impossible images do not."""
    one, two = torch.empty(3, 1), torch.empty(3, 2)
    assert suits(one)
    assert not suits(two)
    assert not suits(one, torch.tensor([0, 4]))
    assert not suits(one, None, TALLEST + 1)
    assert not suits(one, None, 64, 1 << 31)
    seen = []
    monkeypatch.setattr(kernels, "forward", lambda *args, **options: seen.append("general"))
    monkeypatch.setattr(kernels_single, "forward", lambda *args, **options: seen.append("single") or (args[0],) * 3)
    selective_scan(**scan_inputs(1, 2, 3, 1).kwargs(), dt_softplus=True, impl="triton")
    assert seen == ["single"]


def test_a_product_stands_for_the_division_by_the_height():
    for height in (*range(2, 70), 251, 1000, 4096, 16383, TALLEST - 1, TALLEST):
        n = torch.arange(height + 64)
        assert torch.equal((n * (magic(height) % (1 << 32))) >> 32, n // height), height


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("span", [0, 2])
@pytest.mark.parametrize("shape", [(2, 1000, 240), (3, 333, 37), (1, 197, 10), (2, 64, 33)], ids=str)
def test_real_sizes(shape, span, dtype):
    inputs = scan_inputs(*shape, 1, dtype=dtype, device="cuda").kwargs()
    inputs["A"] = inputs["A"] * 0.05  # states outlive their chunk
    assert_parity(inputs, chunk=64, span=span)


@gpu
def test_nothing_compiles_again_for_another_size():
    """Neither for a row that fills no tile nor for another shape of image."""
    names = ("forward_kernel", "local_kernel", "backward_kernel", "finish_kernel")

    def compiled():
        kernels = [getattr(kernels_single, name) for name in names] + [kernels_sums.sum_kernel]
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)

    counts = []
    for batch, height, width in ((2, 20, 30), (1, 20, 31), (16, 32, 64), (3, 1, 700), (5, 700, 1)):
        args = scan_2d_inputs(batch, height, width, 5, 1, dtype=torch.bfloat16, device="cuda").kwargs()
        leaves = [t.requires_grad_() for t in args.values()]
        for span in (0, 2):
            options = {"chunk": 64, "span": span}
            y, states = in_plane.forward(*leaves, True, range(len(DIRECTIONS)), save_states=True, **options)
            in_plane.backward(*leaves, True, range(len(DIRECTIONS)), states, y, **options)
        counts.append(compiled())
    assert counts[0] == counts[-1], counts


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("span", [0, 2])
def test_offsets_beyond_two_to_the_31(span):
    """The last row begins behind element 2**31; it must equal the same row alone, gradients too."""
    batch, length, channels = 3, 1 << 15, 1 << 15
    generator = torch.Generator(device="cuda").manual_seed(0)
    x, dt = (
        torch.randn(batch, length, channels, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in "ab"
    )
    B, C = (torch.randn(batch, length, 1, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    A = -torch.rand(channels, 1, generator=generator, device="cuda")
    rest, options = (None, None, None, None, None, True, False), {"chunk": 64, "span": span}

    def whole(*tensors):
        x, dt, B, C = tensors
        args = (x, dt, A, B, C, *rest)
        y, final, states = kernels_single.forward(*args, save_states=True, **options)
        grads = kernels_single.backward(*args, states, x, None, **options)
        return [t[-1:].clone() for t in (y, final, grads[0], grads[1], grads[3], grads[4])]

    ours, alone = whole(x, dt, B, C), whole(*(t[-1:].clone() for t in (x, dt, B, C)))
    assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True))
