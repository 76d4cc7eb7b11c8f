"""`selective_scan_bidirectional` is two scans, one each way, added under one gate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import selective_scan, selective_scan_bidirectional
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_inputs
from torch._dynamo.testing import CompileCounterWithBackend

OP = torch.ops.ssm_kernels.selective_scan_bidirectional
gpu = pytest.mark.gpu
WHERE = [
    ("cpu", "torch"),
    pytest.param("cuda", "triton", marks=gpu),
    pytest.param("cuda", "torch", marks=gpu),
]
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
LEFT_OUT = {"D": None, "dt_bias": None, "D_b": None, "dt_bias_b": None, "z": None}


def make(*shape, behind=None, groups=None, **options):
    """Make the arguments; `behind` is the state size of the backward direction."""
    ahead = scan_inputs(*shape, groups=groups, **options).kwargs()
    other = scan_inputs(*shape[:3], behind or shape[3], groups=groups, seed=1, **options).kwargs()
    named = {name: ahead[name] for name in NAMES} | {f"{name}_b": other[name] for name in NAMES}
    return named | {"z": ahead["z"]}


def results(inputs, impl, **options):
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in inputs.items()}
    y = selective_scan_bidirectional(**leaves, impl=impl, **options)
    given = {name: t for name, t in leaves.items() if t is not None}
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype).to(y)
    grads = torch.autograd.grad(y, list(given.values()), cotangent)
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(given, grads, strict=True)}


def doubled(inputs):
    return {name: None if t is None else t.double() for name, t in inputs.items()}


def assert_parity(inputs, impl, **options):
    truth = results(doubled(inputs), "reference", **options)
    eager, found = results(inputs, "reference", **options), results(inputs, impl, **options)
    for name in truth:
        assert_as_accurate(name, found[name], eager[name], truth[name])


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("average", [False, True])
def test_parity(device, impl, dtype, average):
    inputs = make(2, 131, 10, 4, behind=3, groups=2, dtype=dtype, device=device)
    assert_parity(inputs, impl, average=average)


@pytest.mark.parametrize(("device", "impl"), WHERE)
@pytest.mark.parametrize("length", [1, 64])
def test_parity_without_the_optional_arguments(device, impl, length):
    inputs = make(4, length, 7, 5, batched_A=True, device=device) | LEFT_OUT
    assert_parity(inputs, impl)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_is_the_sum_of_two_scans(impl):
    inputs = make(2, 70, 4, 3, dtype=torch.float64)
    ahead = {name: inputs[name] for name in NAMES}
    behind = {name: inputs[f"{name}_b"] for name in NAMES}
    wanted = selective_scan(**ahead, z=inputs["z"], dt_softplus=True)
    wanted = wanted + selective_scan(**behind, z=inputs["z"], dt_softplus=True, reverse=True)
    assert error_ratio(selective_scan_bidirectional(**inputs, impl=impl), wanted) < 1e-14
    assert error_ratio(selective_scan_bidirectional(**inputs, average=True, impl=impl), wanted / 2) < 1e-14


def test_rounds_once():
    """In bfloat16 the sum of both directions is formed before it is rounded."""
    inputs = make(1, 40, 8, 3, dtype=torch.bfloat16)
    truth = selective_scan_bidirectional(**doubled(inputs), impl="reference")
    assert torch.equal(selective_scan_bidirectional(**inputs, impl="torch"), truth.float().bfloat16())


def test_both_directions_may_share_their_tensors():
    """x_b may be x, and so on: the gradient is the sum of both."""
    inputs = scan_inputs(2, 9, 4, 3, dtype=torch.float64).kwargs()
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    grads = []
    for impl in ("torch", "reference"):
        y = selective_scan_bidirectional(*leaves, *leaves, z=inputs["z"], impl=impl)
        grads.append(torch.autograd.grad(y.square().sum(), leaves))
    assert max(error_ratio(a, b) for a, b in zip(*grads, strict=True)) < 1e-13


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_gradcheck(impl):
    leaves = {name: t.requires_grad_() for name, t in make(2, 3, 2, 2, behind=1, dtype=torch.float64).items()}

    def function(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return selective_scan_bidirectional(**named, average=True, impl=impl)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_opcheck(optional, save):
    inputs = make(2, 70, 4, 3, behind=2) | ({} if optional else LEFT_OUT)
    given = [t.requires_grad_() if save and t is not None else t for t in inputs.values()]
    torch.library.opcheck(OP.default, (*given, True, True, save, "auto"))


def test_opcheck_backward():
    inputs = make(2, 70, 4, 3, behind=2)
    y, *states = OP.default(*inputs.values(), True, False, True, "auto")
    backward = torch.ops.ssm_kernels.selective_scan_bidirectional_backward.default
    torch.library.opcheck(backward, (*inputs.values(), *states, torch.randn_like(y), True, False, "auto"))


def loss(inputs):
    return selective_scan_bidirectional(**inputs).square().sum()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_compiles_once_for_any_batch_and_length(device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 70), (3, 40), (5, 129)]:
        grads = []
        for function in (compiled, loss):
            inputs = {k: v.requires_grad_() for k, v in make(batch, length, 4, 6, device=device).items()}
            function(inputs).backward()
            grads.append([v.grad for v in inputs.values()])
        assert all(error_ratio(a, b) < 1e-5 for a, b in zip(*grads, strict=True))
    assert counter.frame_count == 1
    torch._dynamo.reset()


class Scan(torch.nn.Module):
    def forward(self, inputs):
        return selective_scan_bidirectional(**inputs)


def test_exports_with_any_batch_and_length():
    row = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    fixed = ("A", "D", "dt_bias")
    shapes = {name: None if name.removesuffix("_b") in fixed else row for name in make(2, 9, 4, 6)}
    program = torch.export.export(Scan(), (make(2, 70, 4, 6),), dynamic_shapes=(shapes,))
    for batch, length in ((3, 40), (5, 129)):
        inputs = make(batch, length, 4, 6)
        assert torch.equal(program.module()(inputs), selective_scan_bidirectional(**inputs))


def test_meta_tensors_give_shapes_and_dtypes():
    y = selective_scan_bidirectional(**make(2, 9, 4, 3, dtype=torch.bfloat16, device="meta"))
    assert (y.shape, y.dtype) == ((2, 9, 4), torch.bfloat16)


@pytest.mark.parametrize(("device", "impl"), WHERE)
def test_repeats_bit_equal_under_autocast_and_with_poisoned_buffers(device, impl):
    inputs = make(2, 70, 6, 4, device=device)
    clean = results(inputs, impl)
    with poisoned_buffers(), torch.autocast(device, torch.bfloat16):
        again = results(inputs, impl)
    assert all(torch.equal(clean[name], again[name]) for name in clean)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_size_stride_and_mix_of_dtypes(data):
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 80))
    groups = data.draw(st.sampled_from([None, 1, 2]))
    channels = data.draw(st.integers(1, 3)) * (groups or 1)
    states = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    inputs = make(batch, length, channels, states[0], behind=states[1], groups=groups)
    for name in LEFT_OUT:
        if data.draw(st.booleans()):
            inputs[name] = None
    for name, t in inputs.items():
        if t is not None:
            cast = t.to(data.draw(dtypes))
            inputs[name] = cast.movedim(-1, 0).contiguous().movedim(0, -1) if data.draw(st.booleans()) else cast
    found, truth = results(inputs, "torch"), results(inputs, "reference")
    wide = 1e-12 if inputs["x"].dtype == torch.float64 else 4e-6
    for name in truth:
        a, b = found[name], truth[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        allowed = max(wide, 2 * torch.finfo(b.dtype).eps) * max(1.0, b.abs().max().item())
        assert (a - b).abs().max().item() <= allowed, name


WRONG = {
    "x": (torch.zeros(2, 5), "x must be (B, L, D) with every size at least 1, got (2, 5)"),
    "x_b": (torch.zeros(2, 6, 4), "x_b must be the shape of x = (2, 5, 4), got (2, 6, 4)"),
    "dt": (torch.zeros(2, 5, 3), "dt must be (B, L, D) = (2, 5, 4), got (2, 5, 3)"),
    "dt_b": (torch.zeros(2, 5, 3), "dt_b must be (B, L, D) = (2, 5, 4), got (2, 5, 3)"),
    "A_b": (torch.zeros(3, 3), "A_b must be (D, N) or (B, D, N) = (4, 3) or (2, 4, 3), got (3, 3)"),
    "B_b": (torch.zeros(2, 5, 2), "B_b must be (B, L, N) = (2, 5, 3), got (2, 5, 2)"),
    "C_b": (torch.zeros(2, 5, 2), "C_b must be the shape of B_b = (2, 5, 3), got (2, 5, 2)"),
    "D_b": (torch.zeros(5), "D_b must be (D,) or (B, D) = (4,) or (2, 4), got (5,)"),
    "dt_bias_b": (torch.zeros(5), "dt_bias_b must be (D,) = (4,), got (5,)"),
    "z": (torch.zeros(2, 5, 1), "z must be (B, L, D) = (2, 5, 4), got (2, 5, 1)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_argument_is_named(name):
    tensor, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        selective_scan_bidirectional(**(make(2, 5, 4, 3) | {name: tensor}))
    assert str(caught.value).startswith(f"selective_scan_bidirectional: {message}; ")


def test_devices_and_dtypes_are_checked_in_both_directions():
    with pytest.raises(ValueError, match="selective_scan_bidirectional: x_b must be on cpu like the first argument"):
        selective_scan_bidirectional(**(make(2, 5, 4, 3) | {"x_b": torch.zeros(2, 5, 4, device="meta")}))
    with pytest.raises(ValueError, match="selective_scan_bidirectional: A_b must be float32, bfloat16, float16"):
        selective_scan_bidirectional(**(make(2, 5, 4, 3) | {"A_b": torch.zeros(4, 3, dtype=torch.int64)}))


def test_unknown_implementation():
    with pytest.raises(ValueError, match="selective_scan_bidirectional: impl must be one of auto, triton, torch, ref"):
        selective_scan_bidirectional(**make(1, 2, 2, 1), impl="mamba_ssm")
