"""selective_scan_2d, cross_scan, cross_merge: what they compute, for the definition and the vectorised PyTorch form."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from ssm_kernels import cross_merge, cross_scan, selective_scan_2d
from ssm_kernels.ops.selective_scan_2d import DIRECTIONS, torch_impl
from ssm_kernels.ops.selective_scan_2d.cross import to_image
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_2d_inputs

DATA = Path(__file__).parent / "data"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ["x", "dt", "A", "B", "C", "D", "dt_bias"]
SHAPES = {  # batch, height, width, channels, state
    "one pixel": (1, 1, 1, 1, 1),
    "one row": (1, 1, 37, 2, 3),
    "one column": (2, 37, 1, 3, 2),
    "primes": (2, 7, 11, 5, 1),
    "contrast": (1, 16, 8, 54, 1),
    "many states": (1, 5, 6, 4, 16),
}


def run(args, impl, cotangent=None, **options):
    """Return the output and every gradient by name."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in args.items()}
    y = selective_scan_2d(**leaves, impl=impl, **options)
    given_leaves = {name: t for name, t in leaves.items() if t is not None}
    cotangent = torch.ones_like(y) if cotangent is None else cotangent.to(y)
    grads = torch.autograd.grad(y, given_leaves.values(), cotangent)
    return {"y": y.detach(), **{f"grad {name}": g for name, g in zip(given_leaves, grads, strict=True)}}


def noise(*shape, dtype=torch.float64, device="cpu", seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def doubled(args):
    return {name: None if t is None else t.double() for name, t in args.items()}


@pytest.mark.parametrize("height, width", [(4, 5), (1, 6), (6, 1), (3, 3)])
def test_directions_read_the_pixels_they_are_named_after(height, width):
    """The order written as a formula: row t; column (t % H) * W + t // H; reversed from the last."""
    index = torch.arange(height * width)
    column = (index % height) * width + index // height
    wanted = torch.stack([index, column, index.flip(0), column.flip(0)])
    image = index.view(1, height, width, 1)
    assert torch.equal(cross_scan(image)[0, ..., 0], wanted)


def test_cross_scan_and_merge_agree_with_the_published_ones():
    """Integers made with VMamba's code, channels first there."""
    case = load_file(DATA / "cross-scan.safetensors")
    x, ys = case["input.x"].permute(0, 2, 3, 1), case["input.ys"]
    assert torch.equal(cross_scan(x), case["output.scan_cross2d"].transpose(2, 3))
    assert torch.equal(cross_scan(x), case["output.scan_cross2d_channels_last"].transpose(1, 2))
    merged = cross_merge(ys.flatten(3).transpose(2, 3), *x.shape[1:3])
    assert torch.equal(merged.flatten(1, 2).transpose(1, 2), case["output.merge_cross2d"])


@pytest.mark.parametrize("directions", [DIRECTIONS, ("column",), ("row", "row", "column_reversed")])
def test_cross_merge_is_the_adjoint_of_cross_scan(directions):
    x, y = noise(2, 3, 5, 4), noise(2, len(directions), 15, 4, seed=8)
    there = (cross_scan(x, directions) * y).sum()
    back = (x * cross_merge(y, 3, 5, directions)).sum()
    torch.testing.assert_close(there, back)
    assert torch.equal(cross_merge(cross_scan(x.round(), directions), 3, 5, directions), len(directions) * x.round())


def test_cross_merge_sums_half_precision_in_float32():
    """Summed one by one in float16, the small terms would be lost."""
    y = torch.tensor([2048.0, 0.75, 0.75, 0.75], dtype=torch.float16).view(1, 4, 1, 1)
    assert cross_merge(y, 1, 1).item() == 2050


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_operator_agrees_with_published_stages(impl):
    """Projections in, merged scans out, from the published SS2D with N = 4 (stored in float32)."""
    case = load_file(DATA / "ss2d-n4.safetensors")
    height, width = case["input.x"].shape[1:3]

    def by_pixel(t):  # (B, 4, rows, L) in scan order -> (B, H, W, 4, rows)
        images = [to_image(t[:, k].transpose(1, 2).double(), height, width, k) for k in range(4)]
        return torch.stack(images, dim=3)

    u = by_pixel(case["mid.u_scanned"].unflatten(1, (4, -1)))
    y = selective_scan_2d(
        u[..., 0, :],
        by_pixel(case["mid.delta_raw"].unflatten(1, (4, -1))),
        -torch.exp(case["state.A_logs"].double()).unflatten(0, (4, -1)),
        by_pixel(case["mid.B"]),
        by_pixel(case["mid.C"]),
        case["state.Ds"].double().unflatten(0, (4, -1)),
        case["state.dt_projs_bias"].double(),
        impl=impl,
    )
    assert all(torch.equal(u[..., k, :], u[..., 0, :]) for k in range(4))  # the four scans read one image
    wanted = case["mid.y_merged"].unflatten(2, (height, width)).permute(0, 2, 3, 1)
    assert error_ratio(y, wanted) < 1e-6


# on the CPU every shape in float32 and one half precision: no line depends on shape and dtype; the rest is slow
EVERY_SHAPE = [
    pytest.param(case, dtype, "cpu", marks=pytest.mark.slow if dtype == DTYPES[1 + i % 2] else ())
    for i, case in enumerate(SHAPES)
    for dtype in DTYPES
] + [pytest.param(case, dtype, "cuda", marks=pytest.mark.gpu) for case in SHAPES for dtype in DTYPES]


@pytest.mark.parametrize(("case", "dtype", "device"), EVERY_SHAPE, ids=str)
def test_as_accurate_as_the_definition(case, dtype, device):
    """Output and all gradients, judged against float64 on the same rounded inputs."""
    shape = SHAPES[case]
    args = scan_2d_inputs(*shape, dtype=dtype, device=device).kwargs()
    cotangent = noise(*shape[:4], dtype=dtype, device=device)
    truth = run(doubled(args), "reference", cotangent)
    result, eager = run(args, "torch", cotangent), run(args, "reference", cotangent)
    for name, value in truth.items():
        assert_as_accurate(name, result[name], eager[name], value)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("softplus, optional", [(True, True), (False, False)])
def test_gradients_are_those_of_the_function(impl, softplus, optional):
    """gradcheck in float64: catches a definition that is differentiated wrongly too."""
    args = scan_2d_inputs(2, 3, 2, 2, 2, dtype=torch.float64).kwargs()
    args["dt"] = args["dt"].abs() if not softplus else args["dt"]
    leaves = [t.requires_grad_() for name, t in args.items() if optional or name not in ("D", "dt_bias")]

    def function(*tensors):
        return selective_scan_2d(*tensors, dt_softplus=softplus, impl=impl)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("cut", [(1, 1, 2), (64, 2, 2), (300, 3, 4), (1 << 16, 16, 32)], ids=str)
@pytest.mark.parametrize("height, width", [(9, 10), (7, 1), (1, 13)])
def test_segments_batch_groups_and_carry_levels_change_nothing(monkeypatch, height, width, cut):
    """However the lines are cut: segments that end early, one entry at a time, several levels of carry."""
    for name, value in zip(("SLAB", "SHORTEST", "CARRY"), cut, strict=True):
        monkeypatch.setattr(torch_impl, name, value)
    args = scan_2d_inputs(3, height, width, 2, 2, dtype=torch.float64).kwargs()
    cotangent = noise(3, height, width, 2)
    truth, result = run(args, "reference", cotangent), run(args, "torch", cotangent)
    for name, value in truth.items():
        assert error_ratio(result[name], value) < 1e-13, name


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(
    "directions", [("row",), ("column_reversed",), ("column", "row"), ("row_reversed", "row", "row_reversed")]
)
def test_directions_are_summed_in_any_number_and_order(impl, directions):
    """The sum over K directions is the sum of K scans with one direction each."""
    args = scan_2d_inputs(1, 4, 5, 3, 2, directions=len(directions), dtype=torch.float64).kwargs()
    parts = []
    for k, direction in enumerate(directions):
        own = {"x": args["x"], **{name: args[name][k : k + 1] for name in ("A", "D", "dt_bias")}}
        own |= {name: args[name][..., k : k + 1, :] for name in ("dt", "B", "C")}
        parts.append(selective_scan_2d(**own, directions=(direction,), impl="reference"))
    torch.testing.assert_close(selective_scan_2d(**args, directions=directions, impl=impl), torch.stack(parts).sum(0))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_turning_the_image_turns_the_directions(impl, direction):
    """Transposing swaps row and column, a half turn swaps forwards and backwards: no definition is needed for this."""
    args = scan_2d_inputs(2, 3, 5, 2, 1, directions=1, dtype=torch.float64).kwargs()
    transposed = {
        "row": "column",
        "column": "row",
        "row_reversed": "column_reversed",
        "column_reversed": "row_reversed",
    }
    turned = {"row": "row_reversed", "column": "column_reversed", "row_reversed": "row", "column_reversed": "column"}

    def scan(move, name):
        moved = {key: move(t) if key in ("x", "dt", "B", "C") else t for key, t in args.items()}
        return selective_scan_2d(**moved, directions=(name,), impl=impl)

    y = scan(lambda t: t, direction)
    torch.testing.assert_close(scan(lambda t: t.transpose(1, 2), transposed[direction]), y.transpose(1, 2))
    torch.testing.assert_close(scan(lambda t: t.flip(1, 2), turned[direction]), y.flip(1, 2))


def awkward(t, how):
    """Return `t` with other strides: the same values."""
    if how == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        return torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]
    if how == "swapped":
        return t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t
    return t


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_size_stride_and_mix_of_dtypes(data):
    """Random shapes, layouts, dtypes and directions; every result has the dtype and shape of its argument."""
    size = st.integers(1, 6)
    shape = tuple(data.draw(size, label=name) for name in ("batch", "height", "width", "channels", "state"))
    directions = tuple(data.draw(st.lists(st.sampled_from(DIRECTIONS), min_size=1, max_size=5), label="directions"))
    args = scan_2d_inputs(*shape, directions=len(directions), seed=data.draw(st.integers(0, 99))).kwargs()
    kinds = st.sampled_from([torch.float64, *DTYPES])
    layouts = st.sampled_from(["plain", "transposed", "sliced", "swapped"])
    args = {name: awkward(t.to(data.draw(kinds)), data.draw(layouts)) for name, t in args.items()}
    if data.draw(st.booleans(), label="expanded"):
        args["x"] = args["x"][:, :, :1].expand(-1, -1, shape[2], -1)
    for name in ("D", "dt_bias"):
        args[name] = args[name] if data.draw(st.booleans(), label=name) else None
    truth = run(doubled(args), "reference", directions=directions)
    result = run(args, "torch", directions=directions)
    arithmetic = 1e-10 if args["x"].dtype == torch.float64 else 1e-5
    for name, value in truth.items():
        argument = args[name.removeprefix("grad ")] if name != "y" else args["x"]
        assert result[name].shape == argument.shape and result[name].dtype == argument.dtype, name
        assert error_ratio(result[name], value) < arithmetic + 4 * torch.finfo(argument.dtype).eps, name
    assert result["y"].is_contiguous()


def test_float64_is_float64():
    """No step falls back to float32, whatever the dtype of the parameters."""
    args = scan_2d_inputs(1, 4, 4, 3, 2, dtype=torch.float64).kwargs()
    single = {name: t.float() if name in ("A", "D", "dt_bias") else t for name, t in args.items()}
    y = selective_scan_2d(**single, impl="torch")
    assert y.dtype == torch.float64
    assert error_ratio(y, selective_scan_2d(**doubled(single), impl="reference")) < 1e-14


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_extreme_steps_and_rates_stay_finite(dtype, impl, device):
    """Decays of 0 and 1, steps from 0 to 1e4: a division or a cumulative product would give NaN."""
    args = scan_2d_inputs(1, 6, 8, 5, 2, dtype=dtype, device=device).kwargs()
    steps = torch.tensor([-6e4, -80, -20, 0, 30, 90, 1e4], device=device)
    args["dt"] = steps[torch.arange(args["dt"].numel(), device=device) % 7].view(args["dt"].shape).to(dtype)
    rates = torch.tensor([0.0, -1e-6, -1, -100, -1e4], device=device)
    args["A"] = rates[torch.arange(args["A"].numel(), device=device) % 5].view(args["A"].shape)
    args["x"] = args["x"] * 1e-3
    for name, value in run(args, impl, torch.full((1, 6, 8, 5), 1e-3)).items():
        assert torch.isfinite(value).all(), name


def test_long_stiff_sequences_are_exact():
    """Decays over many orders of magnitude along 4096 steps, where a ratio of cumulative products underflows."""
    args = scan_2d_inputs(1, 2, 2048, 2, 1, directions=1, dtype=torch.float64).kwargs()
    args["dt"] = args["dt"] * 8
    args["A"] = args["A"] * torch.tensor([1.0, 1e4], dtype=torch.float64)[:, None]
    single = {name: t.float() for name, t in args.items()}
    truth = selective_scan_2d(**doubled(single), directions=("row",), impl="reference")
    result = selective_scan_2d(**single, directions=("row",), impl="torch")
    assert error_ratio(result, truth) < 3e-7


@pytest.mark.parametrize("device", DEVICES)
def test_every_value_is_written_and_repeats_bit_by_bit(device):
    """Buffers start as NaN: one that is read before it is written shows; two runs agree exactly."""
    args = scan_2d_inputs(2, 5, 19, 3, 2, device=device).kwargs()
    plain = run(args, "auto")
    with poisoned_buffers():
        poisoned = run(args, "auto")
    for name, value in plain.items():
        assert torch.equal(value, poisoned[name]), name


def test_backward_keeps_the_inputs_only():
    """Nothing of the size of a state is saved for the backward pass."""
    args = {name: t.requires_grad_() for name, t in scan_2d_inputs(1, 4, 4, 3, 2).kwargs().items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan_2d(**args)
    assert sorted(t.data_ptr() for t in saved if t.numel()) == sorted(t.data_ptr() for t in args.values())


@pytest.mark.parametrize("impl", ["auto", "torch", "reference"])
def test_autocast_changes_nothing(impl):
    """The operator takes the dtypes it is given and computes in float32 inside."""
    args = scan_2d_inputs(1, 4, 5, 3, 2).kwargs()
    plain = run(args, impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(args, impl)
    for name, value in plain.items():
        assert mixed[name].dtype == value.dtype and torch.equal(mixed[name], value), name


BAD = [
    ("x", lambda t: t[0], r"x must be of shape \(B, H, W, D\) with every size at least 1, got \(3, 4, 5\)"),
    ("x", lambda t: t[:0], r"x must be of shape \(B, H, W, D\) with every size at least 1, got \(0, 3, 4, 5\)"),
    ("x", lambda t: t.long(), "x must be float32, bfloat16, float16 or float64, got int64"),
    ("dt", lambda t: t[..., :2, :], r"dt must be \(B, H, W, K, D\) = \(2, 3, 4, 4, 5\), got \(2, 3, 4, 2, 5\)"),
    ("A", lambda t: t[0], r"A must be of shape \(K, D, N\) = \(4, 5, N\) with N at least 1, got \(5, 2\)"),
    ("B", lambda t: t[..., :1], r"B must be \(B, H, W, K, N\) = \(2, 3, 4, 4, 2\), got \(2, 3, 4, 4, 1\)"),
    ("C", lambda t: t[:1], r"C must be \(B, H, W, K, N\) = \(2, 3, 4, 4, 2\), got \(1, 3, 4, 4, 2\)"),
    ("D", lambda t: t[0], r"D must be \(K, D\) = \(4, 5\), got \(5,\)"),
    ("dt_bias", lambda t: t.flatten(), r"dt_bias must be \(K, D\) = \(4, 5\), got \(20,\)"),
    ("C", lambda t: t.to("meta"), "C must be on cpu like the first argument, got meta"),
]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name, change, message", BAD, ids=[f"{name}: {message[:30]}" for name, _, message in BAD])
def test_bad_arguments_are_named(name, change, message, impl):
    args = scan_2d_inputs(2, 3, 4, 5, 2).kwargs()
    args[name] = change(args[name])
    with pytest.raises(ValueError, match=f"^selective_scan_2d: {message}; "):
        selective_scan_2d(**args, impl=impl)


@pytest.mark.parametrize("directions", [(), "row", ("row", "diagonal"), ("ROW",)])
def test_unknown_directions_are_refused(directions):
    args = scan_2d_inputs(1, 2, 2, 1, 1).kwargs()
    for name, call in {
        "selective_scan_2d": lambda: selective_scan_2d(**args, directions=directions),
        "cross_scan": lambda: cross_scan(args["x"], directions),
        "cross_merge": lambda: cross_merge(args["x"], 1, 2, directions),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: directions must be a non-empty tuple of 'row', 'column'"):
            call()


def test_wrong_sizes_of_a_merge_are_refused():
    y = torch.zeros(1, 4, 6, 2)
    with pytest.raises(
        ValueError, match=r"^cross_merge: y must be \(B, K, H \* W, D\) = \(1, 4, 8, 2\), got \(1, 4, 6, 2\)"
    ):
        cross_merge(y, 2, 4)
    with pytest.raises(ValueError, match=r"^cross_merge: height and width must be at least 1, got \(-2, -3\)"):
        cross_merge(y, -2, -3)
    with pytest.raises(ValueError, match=r"^cross_scan: x must be of shape \(B, H, W, D\)"):
        cross_scan(y[0])


def test_unknown_impl_is_refused():
    args = scan_2d_inputs(1, 2, 2, 1, 1).kwargs()
    with pytest.raises(ValueError, match=r"^selective_scan_2d: impl must be one of auto, triton, torch, reference"):
        selective_scan_2d(**args, impl="cuda")
    with pytest.raises(ValueError, match=r"^selective_scan_2d: impl='triton' cannot run here: float64 is for"):
        selective_scan_2d(**doubled(args), impl="triton")
