"""The Triton kernels of selective_scan_2d: in Triton's interpreter on small images, on a GPU at real sizes."""

import pytest
import torch
from ssm_kernels import selective_scan_2d
from ssm_kernels.ops.selective_scan_2d import DIRECTIONS, kernels, schema
from ssm_kernels.testing import assert_as_accurate, poisoned_buffers, scan_2d_inputs

gpu = pytest.mark.gpu
CASES = {  # batch, height, width, channels, state, directions
    "all directions": (2, 2, 5, 3, 1, DIRECTIONS),
    "several chunks": (1, 3, 5, 2, 2, DIRECTIONS),
    "one pixel": (1, 1, 1, 1, 1, DIRECTIONS),
    "one row": (1, 1, 19, 2, 1, ("column_reversed", "row_reversed")),
    "one column": (1, 18, 1, 2, 1, ("column", "row")),
    "repeated": (1, 3, 4, 5, 3, ("column", "column", "column_reversed")),
    "long chunks and two channel blocks": (1, 8, 9, 33, 1, ("row", "row_reversed")),
}
REAL_CASES = {
    "training": (32, 64, 64, 54, 1, DIRECTIONS),
    "tile": (1, 251, 256, 54, 1, DIRECTIONS),
    "MambaIR": (1, 64, 64, 360, 16, DIRECTIONS),
    "odd": (3, 37, 41, 97, 5, ("row_reversed", "column", "row", "row")),
}


def run(args, impl, cotangent, **options):
    """Return the output and every gradient by name."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in args.items()}
    y = selective_scan_2d(**leaves, impl=impl, **options)
    present = {name: t for name, t in leaves.items() if t is not None}
    grads = torch.autograd.grad(y, present.values(), cotangent.to(y))
    return {"y": y.detach(), **{f"grad {name}": g for name, g in zip(present, grads, strict=True)}}


def make(case, dtype=torch.float32, device="cpu", seed=0):
    """Return the arguments, a cotangent, and the directions as an option."""
    *shape, directions = case
    args = scan_2d_inputs(*shape, directions=len(directions), dtype=dtype, device=device, seed=seed).kwargs()
    cotangent = torch.randn(shape[:4], generator=torch.Generator().manual_seed(7)).to(device, dtype)
    return args, cotangent, {"directions": directions}


def doubled(args):
    return {name: None if t is None else t.double() for name, t in args.items()}


def three_results(args, cotangent, truth_impl="reference", **options):
    """Return the float64 truth, what eager PyTorch makes of it in the same dtype, and Triton's result."""
    truth = run(doubled(args), truth_impl, cotangent, **options)
    return truth, run(args, truth_impl, cotangent, **options), run(args, "triton", cotangent, **options)


def assert_parity(args, cotangent, truth_impl="reference", **options):
    """Judge Triton's output and gradients by the float64 truth and by eager PyTorch in the same dtype; return them."""
    truth, eager, result = three_results(args, cotangent, truth_impl, **options)
    for name, value in truth.items():
        assert_as_accurate(name, result[name], eager[name], value, slack=2 if truth_impl == "torch" else 1.5)
    return result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_accurate_as_the_definition(case, monkeypatch):
    if case is CASES["several chunks"]:
        monkeypatch.setattr(schema, "CHUNK", 8)
    args, cotangent, options = make(case)
    assert_parity(args, cotangent, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_as_accurate_as_the_definition_in_half_precision(dtype):
    args, cotangent, options = make((1, 3, 5, 3, 2, ("column", "row_reversed")), dtype)
    assert_parity(args, cotangent, **options)


@pytest.mark.parametrize("missing", [("D",), ("dt_bias",), ("D", "dt_bias")])
def test_optional_arguments(missing):
    """Without D or dt_bias, and without softplus."""
    args, cotangent, options = make((1, 3, 4, 2, 1, ("row", "column")))
    args |= dict.fromkeys(missing)
    args["dt"] = args["dt"].abs() + 0.1
    assert_parity(args, cotangent, dt_softplus="D" in missing, **options)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "projected"])
def test_any_strides(layout):
    """Layouts that the kernels read in place (slices of one projection) and such that they must copy."""
    args, cotangent, options = make((2, 2, 3, 3, 2, ("row", "column_reversed")))
    if layout == "transposed":
        args = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in args.items()}
        cotangent = cotangent.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "expanded":
        args["x"] = args["x"][:, :1].expand(-1, 2, -1, -1)
        args["dt"] = args["dt"][..., :1].expand(-1, -1, -1, -1, 3)
        cotangent = torch.ones(()).expand(2, 2, 3, 3)
    else:
        projected = torch.cat([args["B"], args["C"], args["B"]], dim=-1)
        args["B"], args["C"] = projected[..., :2], projected[..., 2:4]
        args["dt"] = args["dt"].permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    assert_parity(args, cotangent, **options)


def test_mixed_dtypes():
    """x, dt, B and C in one half precision and another, parameters in float64: as autocast and users mix them."""
    args, cotangent, options = make((1, 3, 5, 3, 2, ("row", "column")))
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.float32, torch.bfloat16, torch.float64, torch.float16]
    args = {name: t.to(kind) for (name, t), kind in zip(args.items(), kinds, strict=True)}
    result = assert_parity(args, cotangent, **options)
    assert [result[f"grad {name}"].dtype for name in args] == kinds


def test_every_value_is_written_and_repeats_bit_by_bit():
    """Buffers start as NaN: one that is read before it is written shows; two runs agree exactly."""
    args, cotangent, options = make((1, 2, 5, 3, 1, ("column", "row_reversed")))
    plain = run(args, "triton", cotangent, **options)
    with poisoned_buffers():
        poisoned = run(args, "triton", cotangent, **options)
    for name, value in plain.items():
        assert torch.equal(value, poisoned[name]), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_extreme_steps_and_rates_stay_finite(dtype, device):
    """Decays of 0 and 1, steps from 0 to 1e4, in an image of several chunks."""
    args, cotangent, options = make((1, 3, 5, 3, 1, ("row", "column_reversed")), dtype, device)
    steps = torch.tensor([-6e4, -80, -20, 0, 30, 90, 1e4], device=device)
    args["dt"] = steps[torch.arange(args["dt"].numel(), device=device) % 7].view(args["dt"].shape).to(dtype)
    rates = torch.tensor([0.0, -1e-6, -1, -100, -1e4], device=device)
    args["A"] = rates[torch.arange(args["A"].numel(), device=device) % 5].view(args["A"].shape)
    args["x"] = args["x"] * 1e-3
    for name, value in run(args, "triton", cotangent * 1e-3, **options).items():
        assert torch.isfinite(value).all(), name


def test_softplus_is_exact_for_small_and_large_steps():
    """A decay of almost 1 needs every bit of a small step: log(1 + exp(z)) written so would lose them."""
    args, _, options = make((1, 1, 12, 1, 1, ("row",)))
    args |= {"dt": torch.linspace(-30, 100, 12).view(1, 1, 12, 1, 1), "A": torch.zeros(1, 1, 1), "D": None}
    args |= {"dt_bias": None, "B": torch.ones(1, 1, 12, 1, 1), "C": torch.ones(1, 1, 12, 1, 1)}
    args["x"] = torch.ones(1, 1, 12, 1)
    y = selective_scan_2d(**args, impl="triton", **options)
    truth = torch.nn.functional.softplus(args["dt"].double(), threshold=1e9).flatten().cumsum(0)
    torch.testing.assert_close(y.flatten().double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("span", [0, 1, 2])
def test_both_ways_through_an_image(span):
    """One program per direction, and several: chunks of 4 pixels end in the middle of rows and of columns."""
    args, _, options = make((1, 3, 5, 3, 2, DIRECTIONS))
    codes = [DIRECTIONS.index(name) for name in options["directions"]]
    y, _ = kernels.forward(*args.values(), True, codes, save_states=False, chunk=4, span=span)
    truth, eager = (selective_scan_2d(**kind, impl="reference", **options) for kind in (doubled(args), args))
    assert_as_accurate("y", y, eager, truth)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", REAL_CASES.values(), ids=REAL_CASES)
def test_real_sizes(case, dtype):
    """Against the vectorised PyTorch form, which the CPU tests compare with the definition."""
    args, cotangent, options = make(case, dtype, "cuda")
    assert_parity(args, cotangent, "torch", **options)


@gpu
def test_small_cases_on_a_gpu():
    """Eight draws are judged together: the error of a handful of numbers is luck."""
    for case in CASES.values():
        made = [make(case, device="cuda", seed=seed) for seed in range(8)]
        draws = [three_results(args, cotangent, **options) for args, cotangent, options in made]
        for name in draws[0][0]:
            truth, eager, found = (torch.stack([draw[k][name] for draw in draws]) for k in range(3))
            assert_as_accurate(name, found, eager, truth)


@gpu
def test_repeats_bit_by_bit_on_a_gpu():
    args, cotangent, options = make(REAL_CASES["training"], torch.bfloat16, "cuda")
    first, second = (run(args, "auto", cotangent, **options) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@gpu
def test_no_compilation_for_a_new_size():
    """Batch, height and width are not specialised on, not even where they are 1 or divide by 16."""
    from ssm_kernels.ops.selective_scan import kernels as shared

    names = ("forward_kernel", "local_kernel", "carry_kernel", "backward_kernel")
    compiled = [getattr(shared, name) for name in names]

    def count():
        return sum(len(cache) for kernel in compiled for cache, *_ in kernel.device_caches.values())

    def scan(*size):
        args, cotangent, options = make((*size, 5, 1, DIRECTIONS), device="cuda")
        run(args, "triton", cotangent, **options)

    scan(2, 20, 30)
    before = count()
    for size in [(1, 20, 30), (16, 32, 64), (3, 1, 700), (5, 700, 1)]:
        scan(*size)
    assert count() == before


@gpu
@pytest.mark.slow
def test_offsets_beyond_32_bits():
    """dt with more than 2^31 values, its outermost axis the direction: the last batch entry is the first once more."""
    first = scan_2d_inputs(1, 1024, 1024, 240, 1, dtype=torch.bfloat16, device="cuda").kwargs()
    args = {name: torch.cat([t] * 3) if name in ("x", "dt", "B", "C") else t for name, t in first.items()}
    args["dt"] = args["dt"].permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    assert 3 * args["dt"].stride(3) > 2**31 > args["dt"].stride(3)
    y = selective_scan_2d(**args, impl="triton")
    assert torch.equal(y[2:], selective_scan_2d(**first, impl="triton"))


@gpu
def test_runs_on_the_device_of_the_tensors():
    """Triton launches on the current device; the operator makes the tensors' device current."""
    device = f"cuda:{torch.cuda.device_count() - 1}"
    args, cotangent, options = make((1, 5, 7, 3, 1, DIRECTIONS), device=device)
    result = run(args, "triton", cotangent, **options)
    assert all(t.device == torch.device(device) for t in result.values())
