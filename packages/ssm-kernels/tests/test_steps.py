"""`selective_scan_step` and `depthwise_conv1d_step`: one token at a time gives what the whole sequence gives."""

import pytest
import torch
import triton
from ssm_kernels.ops.depthwise_conv1d import depthwise_conv1d
from ssm_kernels.ops.depthwise_conv1d_step import depthwise_conv1d_step
from ssm_kernels.ops.selective_scan import selective_scan
from ssm_kernels.ops.selective_scan_step import selective_scan_step
from ssm_kernels.testing import assert_as_accurate, error_ratio, poisoned_buffers, scan_inputs
from torch._dynamo.testing import CompileCounterWithBackend

gpu = pytest.mark.gpu
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
IMPLS = ["torch", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS = ("x", "dt", "B", "C", "z")
SCAN_OPS = torch.ops.ssm_kernels.selective_scan_step, torch.ops.ssm_kernels.selective_scan_step_backward
CONV_OPS = torch.ops.ssm_kernels.depthwise_conv1d_step, torch.ops.ssm_kernels.depthwise_conv1d_step_backward


def scan_tensors(batch, channels, size, *, length=1, device=DEVICE, **options):
    """Return the inputs of a scan by name; with one step, those of selective_scan_step."""
    made = scan_inputs(batch, length, channels, size, device=device, **options).kwargs()
    given = {name: x for name, x in made.items() if x is not None}
    if length > 1:
        return given
    given["state"] = given.pop("initial_state", torch.zeros(batch, channels, size, device=device))
    return {name: x[:, 0] if name in TOKENS else x for name, x in given.items()}


def conv_tensors(batch, channels, taps, *, dtype=torch.float32, device=DEVICE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, kind=wide):
        return torch.randn(*shape, generator=generator).to(kind).to(device)

    return {
        "x": normal(batch, channels, kind=dtype),
        "weight": normal(channels, taps),
        "bias": normal(channels),
        "state": normal(batch, channels, taps - 1, kind=dtype),
    }


def scan_step(impl, **tensors):
    return selective_scan_step(**tensors, dt_softplus=True, impl=impl)


def conv_step(impl, **tensors):
    return depthwise_conv1d_step(**tensors, activation="silu", impl=impl)


def run(step, tensors, impl, dtype=None):
    """Return y, the next state and all gradients for random gradients of both."""
    leaves = {n: (x if dtype is None else x.to(dtype)).detach().requires_grad_() for n, x in tensors.items()}
    y, following = step(impl, **leaves)
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(t.shape, generator=generator).to(tensors["x"].dtype).to(t) for t in (y, following)]
    grads = torch.autograd.grad([y, following], list(leaves.values()), cotangents)
    named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"y": y.detach(), "next": following.detach(), **named}


def assert_parity(step, tensors, impl):
    truth = run(step, tensors, "reference", torch.float64)
    eager, found = run(step, tensors, "reference"), run(step, tensors, impl)
    for name, value in truth.items():
        assert_as_accurate(f"{name} {impl}", found[name], eager[name], value)


CASES = {  # batch, channels, state
    "plain": ((3, 13, 16), {}),
    "groups": ((2, 24, 3), {"groups": 3}),
    "own rates per row": ((2, 20, 5), {"batched_A": True}),
    "large state": ((2, 3, 100), {}),
    "no state axis": ((4, 33, 1), {}),
    "only what must be": ((2, 24, 4), {"optional": False}),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scan_step_as_accurate_as_the_definition(case, dtype, impl):
    """y, the next state and every gradient, for all of them random gradients of both results."""
    sizes, options = CASES[case]
    assert_parity(scan_step, scan_tensors(*sizes, dtype=dtype, **options), impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 13, 2), (2, 150, 4), (5, 24, 8)], ids=str)
def test_conv_step_as_accurate_as_the_definition(sizes, dtype, impl):
    assert_parity(conv_step, conv_tensors(*sizes, dtype=dtype), impl)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_steps_are_the_scan(impl):
    """Seven tokens one by one: every y, the last state, and the gradients through all of them."""
    tensors = scan_tensors(2, 6, 4, length=7, groups=2)
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y, final = selective_scan(**leaves, dt_softplus=True, return_final_state=True, impl="reference")
    steady = {name: x for name, x in leaves.items() if name not in (*TOKENS, "initial_state")}
    state, steps = leaves["initial_state"], []
    for t in range(7):
        token = {name: leaves[name][:, t] for name in TOKENS}
        step, state = selective_scan_step(**token, **steady, state=state, dt_softplus=True, impl=impl)
        steps.append(step)
    found = torch.stack(steps, 1)
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(state, final)
    expected = torch.autograd.grad(y.square().sum() + final.sum(), list(leaves.values()))
    grads = torch.autograd.grad(found.square().sum() + state.sum(), list(leaves.values()))
    for name, grad, theirs in zip(leaves, grads, expected, strict=True):
        assert error_ratio(grad, theirs) < 2e-6, name


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("taps", [2, 4])
def test_steps_are_the_convolution(taps, impl):
    """Six tokens one by one from a given state, and the gradients through all of them."""
    tensors = conv_tensors(2, 6, taps)
    sequence = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    leaves = {**tensors, "x": sequence}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    x, weight, bias, state = leaves.values()
    y = depthwise_conv1d(x, weight, bias, initial_state=state, activation="silu", impl="reference")
    steps, window = [], state
    for t in range(6):
        step, window = conv_step(impl, x=x[:, t], weight=weight, bias=bias, state=window)
        steps.append(step)
    found = torch.stack(steps, 1)
    torch.testing.assert_close(found, y)
    assert torch.equal(window, x[:, 6 - (taps - 1) :].mT)
    expected = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    for grad, theirs in zip(torch.autograd.grad(found.square().sum(), list(leaves.values())), expected, strict=True):
        assert error_ratio(grad, theirs) < 2e-6


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("softplus", [False, True])
def test_gradients_of_the_scan_step_are_those_of_the_function(softplus, impl):
    tensors = scan_tensors(2, 4, 3, dtype=torch.float64, groups=2, device="cpu")
    names = list(tensors)

    def function(*leaves):
        return selective_scan_step(**dict(zip(names, leaves, strict=True)), dt_softplus=softplus, impl=impl)

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in tensors.values()], fast_mode=True)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_of_the_conv_step_are_those_of_the_function(activation, impl):
    def function(x, weight, bias, state):
        return depthwise_conv1d_step(x, weight, bias, state=state, activation=activation, impl=impl)

    leaves = [x.requires_grad_() for x in conv_tensors(2, 3, 4, dtype=torch.float64, device="cpu").values()]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_of_one_result_alone(impl):
    """The other result's missing gradient is a zero: from y only, from the state only."""
    for step, tensors in ((scan_step, scan_tensors(2, 5, 3)), (conv_step, conv_tensors(2, 5, 3))):
        for which in (0, 1):
            grads = []
            for kind in ("reference", impl):
                leaves = [x.detach().requires_grad_() for x in tensors.values()]
                result = step(kind, **dict(zip(tensors, leaves, strict=True)))[which]
                grads.append(torch.autograd.grad(result.sum(), leaves, materialize_grads=True))
            for theirs, ours in zip(*grads, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
@pytest.mark.parametrize("impl", IMPLS)
def test_operator_contract(impl):
    """Schema, fake kernel, autograd registration and AOT dispatch of all four registered operators."""
    tensors = scan_tensors(2, 4, 2)
    order = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")
    scan = [tensors[name].requires_grad_() for name in order]
    torch.library.opcheck(SCAN_OPS[0].default, (*scan, True, impl))
    conv = [x.requires_grad_() for x in conv_tensors(2, 3, 4).values()]
    torch.library.opcheck(CONV_OPS[0].default, (*conv, "silu", impl))
    if impl == "torch":
        scan, conv = ([x.detach() for x in kept] for kept in (scan, conv))
        torch.library.opcheck(SCAN_OPS[1].default, (scan[0], scan[-1], *scan, True))
        torch.library.opcheck(CONV_OPS[1].default, (conv[0], None, *conv, "silu"))
        bare = (*scan[:5], None, None, None, scan[-1], False)
        torch.library.opcheck(SCAN_OPS[0].default, (*bare, impl))
        torch.library.opcheck(SCAN_OPS[1].default, (scan[0], None, *bare))


def test_compiles_once_for_all_batches():
    """Fullgraph with a dynamic batch, both steps in one function as a model has them, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(window, x, weight, bias, dt, A, B, C, D, z, dt_bias, state):
        x, window = depthwise_conv1d_step(x * 2, weight, bias, state=window, activation="silu")
        y, state = selective_scan_step(x, dt, A, B, C, D, state=state, z=z, dt_bias=dt_bias, dt_softplus=True)
        return y, window, state

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch in (7, 2, 9):  # no size equal to another one at first
        conv, scan = conv_tensors(batch, 6, 4), scan_tensors(batch, 6, 5)
        window, rest = conv.pop("state"), {name: scan[name] for name in ("dt", "A", "B", "C", "D", "z", "dt_bias")}
        leaves = [x.requires_grad_() for x in (window, *conv.values(), *rest.values(), scan["state"])]
        expected, results = function(*leaves), compiled(*leaves)
        theirs = torch.autograd.grad([x.sum() for x in expected], leaves)
        ours = torch.autograd.grad([x.sum() for x in results], leaves)
        for a, b in zip((*results, *ours), (*expected, *theirs), strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch():
    class Step(torch.nn.Module):
        def forward(self, window, weight, dt, A, B, state):
            x, window = depthwise_conv1d_step(dt, weight, state=window)
            return selective_scan_step(x, dt, A, B, B, state=state), window

    def inputs(batch):
        scan, conv = scan_tensors(batch, 6, 5, device="cpu"), conv_tensors(batch, 6, 4, device="cpu")
        return conv["state"], conv["weight"], scan["dt"], scan["A"], scan["B"], scan["state"]

    batch = {0: torch.export.Dim("batch", max=64)}
    shapes = [batch, None, batch, None, batch, batch]
    program = torch.export.export(Step(), inputs(3), dynamic_shapes=shapes)
    for ours, theirs in zip(program.module()(*inputs(5)), Step()(*inputs(5)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
def test_writes_new_results_only(impl):
    """Inputs stay as they were, results share no memory with them, every element is written, a repeat is bit-equal."""
    for step, tensors in ((scan_step, scan_tensors(2, 37, 3)), (conv_step, conv_tensors(2, 37, 2))):
        kept = {name: x.clone() for name, x in tensors.items()}
        first = step(impl, **tensors)
        with poisoned_buffers():
            second = step(impl, **tensors)
        for one, two in zip(first, second, strict=True):
            assert torch.equal(one, two)
            assert one.is_contiguous()
            assert all(one.data_ptr() != x.data_ptr() for x in tensors.values())
        assert all(torch.equal(x, kept[name]) for name, x in tensors.items())


@pytest.mark.parametrize("impl", IMPLS)
def test_any_strides_and_dtypes(impl):
    """Halves of a projection, transposed and expanded tensors, parameters of other dtypes."""
    scan = scan_tensors(3, 8, 4, groups=2, dtype=torch.bfloat16)
    mixed = {
        **scan,
        "x": torch.cat([scan["x"]] * 2, 1)[:, 8:],
        "dt": scan["dt"].float().T.contiguous().T,
        "A": scan["A"].T.contiguous().T,
        "B": scan["B"].repeat_interleave(2, 2)[..., ::2],
        "C": scan["C"][:1].expand(3, -1, -1),
        "D": scan["D"].half(),
        "z": scan["z"].half()[:, :1].expand(-1, 8),
        "state": scan["state"].mT.contiguous().mT,
    }
    conv = conv_tensors(3, 8, 4)
    other = {
        "x": torch.cat([conv["x"]] * 2, 1)[:, 8:],
        "weight": conv["weight"].half().T.contiguous().T,
        "bias": conv["bias"].bfloat16(),
        "state": conv["state"].transpose(0, 2).contiguous().transpose(0, 2).bfloat16(),
    }
    for step, tensors in ((scan_step, mixed), (conv_step, other)):
        theirs, ours = run(step, tensors, "reference"), run(step, tensors, impl)
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype, name
            assert error_ratio(ours[name], value) <= max(torch.finfo(value.dtype).eps, 1e-6), name


def test_small_steps_keep_their_digits():
    """softplus(-20) is 2e-9, not 0; softplus(30) is 30."""
    x = torch.ones(1, 2, device=DEVICE)
    dt = torch.tensor([[-20.0, 30.0]], device=DEVICE)
    A, B, state = torch.zeros(2, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE), torch.zeros(1, 2, 1, device=DEVICE)
    for impl in ("reference", *IMPLS):
        y, _ = selective_scan_step(x, dt, A, B, B, state=state, dt_softplus=True, impl=impl)
        torch.testing.assert_close(y.cpu(), torch.tensor([[2.0611536e-09, 30.0]]), rtol=1e-5, atol=0)


def test_autocast_does_not_reach_inside():
    scan, conv = scan_tensors(2, 6, 4), conv_tensors(2, 6, 4)
    for impl in ("reference", "auto"):
        expected = *scan_step(impl, **scan), *conv_step(impl, **conv)
        with torch.autocast(DEVICE, torch.bfloat16):
            found = *scan_step(impl, **scan), *conv_step(impl, **conv)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_meta_device_gives_shapes_and_dtypes():
    scan = scan_tensors(2, 6, 4, dtype=torch.bfloat16, device="meta")
    y, state = scan_step("auto", **scan)
    assert (y.shape, y.dtype, state.shape, state.dtype) == ((2, 6), torch.bfloat16, (2, 6, 4), torch.float32)
    y, state = conv_step("auto", **conv_tensors(2, 6, 4, dtype=torch.bfloat16, device="meta"))
    assert (y.shape, y.dtype, state.shape, state.dtype) == ((2, 6), torch.bfloat16, (2, 6, 3), torch.bfloat16)


def zeros(*shape):
    return torch.zeros(*shape)


SCAN = {"x": zeros(2, 6), "dt": zeros(2, 6), "A": zeros(6, 4), "B": zeros(2, 4), "C": zeros(2, 4)}
CONV = {"x": zeros(2, 6), "weight": zeros(6, 4), "state": zeros(2, 6, 3)}


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"x must be \(B, D\) with every size at least 1, got \(2, 1, 6\)", {"x": zeros(2, 1, 6)}),
        (r"x must be \(B, D\) with every size at least 1, got \(0, 6\)", {"x": zeros(0, 6)}),
        (r"x must be float32, .* got int64", {"x": zeros(2, 6).long()}),
        (r"dt must be \(B, D\) = \(2, 6\), got \(2, 1\)", {"dt": zeros(2, 1)}),
        (r"dt must be on cpu", {"dt": zeros(2, 6).to("meta")}),
        (r"A must be \(D, N\) or \(B, D, N\) = \(6, 4\) or \(2, 6, 4\), got \(5, 4\)", {"A": zeros(5, 4)}),
        (r"A must be \(D, N\) or \(B, D, N\) with N at least 1, got \(6, 0\)", {"A": zeros(6, 0)}),
        (r"B must be \(B, N\) = \(2, 4\), got \(2, 3\)", {"B": zeros(2, 3)}),
        (r"B must be \(B, G, N\) = \(2, 3, 4\), got \(1, 3, 4\)", {"B": zeros(1, 3, 4)}),
        (r"B must be \(B, G, N\) with G a divisor of D=6, got \(2, 4, 4\)", {"B": zeros(2, 4, 4)}),
        (r"C must be the shape of B = \(2, 4\), got \(2, 1, 4\)", {"C": zeros(2, 1, 4)}),
        (r"D must be \(D,\) or \(B, D\) = \(6,\) or \(2, 6\), got \(4,\)", {"D": zeros(4)}),
        (r"z must be \(B, D\) = \(2, 6\), got \(6,\)", {"z": zeros(6)}),
        (r"dt_bias must be \(D,\) = \(6,\), got \(2, 6\)", {"dt_bias": zeros(2, 6)}),
        (r"state must be \(B, D, N\) = \(2, 6, 4\), got \(2, 4, 6\)", {"state": zeros(2, 4, 6)}),
        (r"state must be float32, .* got bool", {"state": zeros(2, 6, 4).bool()}),
        (r"impl must be one of auto, triton, torch, reference, got 'cuda'", {"impl": "cuda"}),
    ],
)
def test_scan_step_refuses_bad_input(message, change):
    with pytest.raises(ValueError, match=f"^selective_scan_step: {message}"):
        selective_scan_step(**{**SCAN, "state": zeros(2, 6, 4), **change})


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"x must be \(B, D\) with every size at least 1, got \(6,\)", {"x": zeros(6)}),
        (r"x must be float32, .* got int64", {"x": zeros(2, 6).long()}),
        (r"weight must be \(D, k\) = \(6, k\), got \(6, 1, 4\)", {"weight": zeros(6, 1, 4)}),
        (r"weight must be on cpu", {"weight": zeros(6, 4).to("meta")}),
        (r"k of weight must be in 2\.\.8, got 1", {"weight": zeros(6, 1)}),
        (r"bias must be \(D,\) = \(6,\), got \(4,\)", {"bias": zeros(4)}),
        (r"state must be \(B, D, k - 1\) = \(2, 6, 3\), got \(2, 6, 4\)", {"state": zeros(2, 6, 4)}),
        (r"activation must be None or 'silu', got 'gelu'", {"activation": "gelu"}),
        (r"impl must be one of auto, triton, torch, reference, got 'cuda'", {"impl": "cuda"}),
    ],
)
def test_conv_step_refuses_bad_input(message, change):
    with pytest.raises(ValueError, match=f"^depthwise_conv1d_step: {message}"):
        depthwise_conv1d_step(**{**CONV, **change})


def test_conv_step_refuses_float64_weights_for_triton():
    tensors = conv_tensors(2, 6, 4)
    tensors["weight"] = tensors["weight"].double()
    with pytest.raises(ValueError, match="weight must be float32 or narrower with impl='triton', got float64"):
        conv_step("triton", **tensors)
    torch.testing.assert_close(conv_step("auto", **tensors)[0], conv_step("reference", **tensors)[0])


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 2048, 16), (64, 2048, 16), (256, 384, 16), (8, 240, 1), (3, 37, 129)], ids=str)
def test_real_sizes(sizes, dtype):
    assert_parity(scan_step, scan_tensors(*sizes, dtype=dtype), "triton")
    assert_parity(conv_step, conv_tensors(*sizes[:2], 4, dtype=dtype), "triton")


@gpu
@pytest.mark.slow
def test_state_beyond_two_to_the_31_elements():
    """The last row of a state whose offsets need 64 bits equals that row alone."""
    batch, channels, size = 2049, 8192, 128
    tensors = scan_tensors(1, channels, size, dtype=torch.bfloat16)
    steady = {name: tensors.pop(name) for name in ("A", "D", "dt_bias")}
    alone = scan_step("triton", **tensors, **steady)
    many = {name: x.expand(batch, *x.shape[1:]) for name, x in tensors.items()}
    for ours, theirs in zip(scan_step("triton", **many, **steady), alone, strict=True):
        assert torch.equal(ours[-1:], theirs)


@gpu
def test_no_compilation_for_another_batch(monkeypatch):
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["fn"].name))
    for i, batch in enumerate((2, 1, 16, 333)):
        # sizes that no other test has compiled for
        scan_step("triton", **scan_tensors(batch, 48, 7, dtype=torch.bfloat16))
        conv_step("triton", **conv_tensors(batch, 48, 7, dtype=torch.bfloat16))
        if i == 0:
            first = len(compiled)
    assert 0 < first <= 2
    assert len(compiled) == first, compiled
