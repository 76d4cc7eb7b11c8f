"""Export to ONNX: onnxruntime agrees with PyTorch, and graphs do not grow with the input."""

import importlib.util
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import ssm_kernels.onnx
import torch
from ssm_kernels import (
    depthwise_conv1d,
    depthwise_conv1d_step,
    selective_scan,
    selective_scan_2d,
    selective_scan_bidirectional,
    selective_scan_step,
    window_attention,
)
from ssm_kernels.nn import SS2D, BidirectionalMamba, Mamba, OverlappingWindowAttention, WindowAttention
from ssm_kernels.testing import error_ratio, scan_2d_inputs, scan_inputs
from torch import Tensor, nn
from torch.export import Dim

pytestmark = pytest.mark.usefixtures("lean_exporter")
TOLERANCE = 1e-5


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor):
        return self.function(*tensors)


class Runtime:
    """An exported model in onnxruntime."""

    def __init__(self, program: torch.onnx.ONNXProgram):
        proto = program.model_proto
        onnx.checker.check_model(proto)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.proto = proto
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        names = [x.name for x in self.session.get_inputs()]
        found = self.session.run(None, dict(zip(names, (x.numpy() for x in tensors), strict=True)))
        return [torch.from_numpy(np.asarray(x)) for x in found]


def nodes(graph: onnx.GraphProto) -> int:
    """Count the nodes of a graph and of the graphs inside it."""
    inner = (a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return len(graph.node) + sum(nodes(g) for g in inner)


def sequence(batch: int, length: int, channels: int = 12) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(0))


def picture(batch: int, height: int, width: int, channels: int = 12) -> Tensor:
    return torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(0))


def check(
    model: nn.Module, runtime: Runtime, *tensors: Tensor, tolerance: float | tuple[float, ...] = TOLERANCE
) -> None:
    """Compare with PyTorch; `tolerance` is that of all results or has one for each."""
    with torch.no_grad():
        wanted = model(*tensors)
    wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
    found = runtime(*tensors)
    assert len(found) == len(wanted)
    limits = tolerance if isinstance(tolerance, tuple) else (tolerance,) * len(found)
    for ours, theirs, limit in zip(found, wanted, limits, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.isfinite(ours).all()
        assert error_ratio(ours, theirs) <= limit
        assert (ours - theirs).abs().max() <= limit * max(1.0, theirs.abs().max().item())


def check_operator(function: Callable, *tensors: Tensor, tolerance: float | tuple[float, ...] = TOLERANCE) -> Runtime:
    model = Call(function).eval()
    runtime = Runtime(ssm_kernels.onnx.export(model, tensors))
    check(model, runtime, *tensors, tolerance=tolerance)
    return runtime


class Beside(nn.Module):
    """Modules beside each other on one input: an export has its price, and a graph more that of its nodes alone."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


def test_mixers_of_sequences_with_any_batch_and_length():
    model = Beside(Mamba(12), BidirectionalMamba(12)).eval()
    shapes = ({0: Dim("batch"), 1: Dim("length")},)
    runtime = Runtime(ssm_kernels.onnx.export(model, (sequence(2, 32),), dynamic_shapes=shapes))
    for batch, length in ((2, 32), (3, 512), (1, 1), (1, 7)):
        check(model, runtime, sequence(batch, length))


def test_ss2d_with_any_batch_height_and_width():
    model = SS2D(12, d_state=3).eval()
    shapes = ({0: Dim("batch"), 1: Dim("height"), 2: Dim("width")},)
    runtime = Runtime(ssm_kernels.onnx.export(model, (picture(2, 5, 6),), dynamic_shapes=shapes))
    for size in ((2, 5, 6), (1, 17, 3), (1, 1, 1)):
        check(model, runtime, picture(*size))


def test_window_attention_with_any_batch_height_and_width():
    kinds = WindowAttention(12, 3, 4), WindowAttention(12, 3, 4, shift=1), OverlappingWindowAttention(12, 3, 4)
    for kind in kinds:
        nn.init.normal_(kind.relative_position_bias_table)
        nn.init.normal_(kind.qkv.weight)
    model = Beside(*kinds).eval()
    shapes = ({0: Dim("batch"), 1: 4 * Dim("rows"), 2: 4 * Dim("columns")},)
    runtime = Runtime(ssm_kernels.onnx.export(model, (picture(2, 8, 12),), dynamic_shapes=shapes))
    for size in ((2, 8, 12), (1, 4, 4), (1, 20, 8)):
        check(model, runtime, picture(*size))


class EveryOperator(nn.Module):
    """All operators that read more than one token, on one picture (1, H, W, 4)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rates, row = -torch.ones(4, 2), x.flatten(1, 2)
        one = row, row.abs(), rates, row[..., :2], row[..., 2:]
        dt, B, C = (t[..., None, :] for t in (x.abs(), x[..., :2], x[..., 2:]))
        q = x.unflatten(-1, (2, 2))
        return (
            selective_scan(*one),
            selective_scan_bidirectional(*one, None, None, *one, None, None),
            selective_scan_2d(x, dt, rates[None], B, C, directions=("column_reversed",)),
            window_attention(q, q, q, window=4, shift=2),
            depthwise_conv1d(row, x[0, 0, :4].T),
        )


class EveryMixer(nn.Module):
    """All modules on one picture, (B, H, W, 12)."""

    def __init__(self):
        super().__init__()
        self.rows = Beside(Mamba(12), BidirectionalMamba(12))
        self.pictures = Beside(SS2D(12), WindowAttention(12, 3, 4, shift=2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return *self.rows(x.flatten(1, 2)), *self.pictures(x)


@pytest.mark.parametrize(
    ("make", "channels"), [(EveryOperator, 4), pytest.param(EveryMixer, 12, marks=pytest.mark.slow)]
)
def test_node_count_does_not_depend_on_size(make, channels):
    """L = 1,024 and L = 4,096 of the same model with fixed sizes; a file with free sizes has one count anyway."""
    model = make().eval()
    pictures = (picture(1, n, n, channels) for n in (32, 64))
    counts = [nodes(ssm_kernels.onnx.export(model, (x,)).model_proto.graph) for x in pictures]
    assert counts[0] == counts[1]
    assert counts[0] < 400


OPTIONAL = ("D", "z", "dt_bias", "initial_state")


def scan_call(names: tuple[str, ...] = (), softplus: bool = True) -> Callable:
    """Both directions, with the optional arguments that are named; outputs and final states."""

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        found = (
            selective_scan(
                *(x, dt, A, B, C),
                **dict(zip(names, more, strict=True)),
                dt_softplus=softplus,
                reverse=reverse,
                return_final_state=True,
            )
            for reverse in (False, True)
        )
        return tuple(tensor for pair in found for tensor in pair)

    return call


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        pytest.param(OPTIONAL, None, marks=pytest.mark.slow),  # in float64 below
        (("z", "initial_state"), 1),
        (OPTIONAL, 3),
    ],
)
def test_selective_scan_options(names, groups):
    made = scan_inputs(2, 19, 6, 5, groups=groups, batched_A=groups == 3)
    tensors = [getattr(made, name) for name in ("x", "dt", "A", "B", "C", *names)]
    check_operator(scan_call(names), *tensors)


def test_selective_scan_float64():
    made = scan_inputs(2, 19, 6, 5, dtype=torch.float64)
    tensors = [getattr(made, name) for name in ("x", "dt", "A", "B", "C", *OPTIONAL)]
    check_operator(scan_call(OPTIONAL), *tensors, tolerance=1e-13)


def test_selective_scan_takes_half_and_mixed_dtypes():
    made = scan_inputs(1, 9, 4, 2)
    check_operator(scan_call(), made.x.half(), made.dt, made.A.double(), made.B.double(), made.C.half(), tolerance=1e-3)


def test_steps_and_gates_are_precise_in_both_tails():
    """onnxruntime's own Softplus is 0 below -17, which loses steps of 1e-8 and smaller altogether."""
    tails = torch.linspace(-80, 80, 641)[:, None, None]
    ones, rates = torch.ones_like(tails), -torch.ones(1, 1)

    def call(tails: Tensor) -> tuple[Tensor, Tensor]:
        first_step = selective_scan(ones, tails, rates, ones, ones, dt_softplus=True)  # softplus(tails)
        return first_step, selective_scan(ones, ones, rates, ones, ones, z=tails)

    step, gate = Runtime(ssm_kernels.onnx.export(Call(call).eval(), (tails,)))(tails)
    wide = tails.double()
    torch.testing.assert_close(step.double(), torch.logaddexp(wide, 0 * wide), rtol=1e-6, atol=0)
    torch.testing.assert_close(gate.double(), nn.functional.silu(wide), rtol=1e-6, atol=0)


def test_extreme_steps_and_rates_stay_finite():
    """The least arguments, first with ordinary values."""
    made = scan_inputs(2, 19, 6, 5, optional=False)
    dt = made.dt.abs()
    call = scan_call(softplus=False)
    runtime = check_operator(call, made.x, dt, made.A, made.B, made.C)
    check(Call(call), runtime, made.x, dt * 1e4, made.A * 1e4, made.B, made.C)


@pytest.mark.parametrize("optional", [False, True])
def test_selective_scan_bidirectional_options(optional):
    ahead, behind = scan_inputs(2, 11, 6, 4, groups=2, batched_A=optional), scan_inputs(2, 11, 6, 3, seed=1)
    tensors = [x for made in (ahead, behind) for x in (made.x, made.dt.abs(), made.A, made.B, made.C)]
    extra = [ahead.D, behind.D, ahead.dt_bias, ahead.z] if optional else []

    def call(*given: Tensor) -> Tensor:
        D, D_b, bias, z = given[10:] if optional else (None,) * 4
        arguments = (*given[:5], D, bias, *given[5:10], D_b, bias)
        return selective_scan_bidirectional(*arguments, z=z, dt_softplus=optional, average=optional)

    check_operator(call, *tensors, *extra)


@pytest.mark.parametrize("optional", [False, True])
def test_selective_scan_2d_options(optional):
    made = scan_2d_inputs(2, 3, 5, 4, 2, directions=4)
    orders = (("column_reversed",), ("column", "row", "column"), ("row", "row_reversed", "column", "column_reversed"))
    orders = orders if optional else orders[:1]  # the order reaches bias and D, and they not it

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        def scan(order: tuple) -> Tensor:
            k = len(order)
            rest = (t[:k] for t in more)
            arguments = (x, dt[..., :k, :], A[:k], B[..., :k, :], C[..., :k, :], *rest)
            return selective_scan_2d(*arguments, dt_softplus=optional, directions=order)

        return tuple(scan(order) for order in orders)

    extra = (made.D, made.dt_bias) if optional else ()
    check_operator(call, made.x, made.dt.abs(), made.A, made.B, made.C, *extra)


def test_depthwise_conv1d_options():
    x, weight, bias = sequence(2, 9, 6), sequence(1, 6, 7)[0], sequence(1, 1, 6)[0, 0]
    state = sequence(1, 12, 6).view(2, 6, 6)

    def call(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        found = []
        for reverse in (False, True):
            for taps, padding in ((2, "same"), (7, "same"), (2, "causal"), (7, "causal")):
                found.append(depthwise_conv1d(x, weight[:, :taps], padding=padding, reverse=reverse))
            found.append(depthwise_conv1d(x, weight, bias, activation="silu", initial_state=state, reverse=reverse))
        return tuple(found)

    check_operator(call, x, weight, bias, state)


def test_window_attention_options():
    q, k, v = picture(6, 6, 9, 8).unflatten(-1, (2, 4)).split(2)
    kinds = ((3, 0), (3, 2), (5, 0))

    def call(*qkv: Tensor) -> tuple[Tensor, ...]:
        half = window_attention(*(t.half() for t in qkv), window=3, shift=2, scale=0.7)
        wide = (window_attention(*qkv, window=3, key_window=keys, shift=shift, scale=0.7) for keys, shift in kinds)
        return half, *wide

    check_operator(call, q, k, v, tolerance=(2e-3, *(TOLERANCE,) * len(kinds)))


def test_one_token_operators():
    """With a state of half precision too, which the convolution keeps and the scan widens; in groups and without."""
    made, other = scan_inputs(2, 1, 6, 4, groups=3, batched_A=True), scan_inputs(2, 1, 6, 4)
    assert made.z is not None
    first = [x[:, 0] for x in (made.x, made.dt, made.B, made.C, made.z)]
    rest = [made.A, made.D, made.dt_bias, made.initial_state, other.A, other.B[:, 0], other.C[:, 0]]
    weight, steps = sequence(1, 6, 3)[0], sequence(2, 6, 2).half()

    def call(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        A, D, bias, state, *ungrouped, weight, steps = more
        y, following = selective_scan_step(x, dt, A, B, C, D, state=state, z=z, dt_bias=bias, dt_softplus=True)
        plain, _ = selective_scan_step(x.half(), dt.abs(), *ungrouped, state=state.half())
        conv, moved = depthwise_conv1d_step(x, weight, bias, state=steps, activation="silu")
        return y, following, plain.float(), conv, moved

    single, half = TOLERANCE, 1e-3
    check_operator(call, *first, *rest, weight, steps, tolerance=(single, single, half, half, half))


@pytest.mark.parametrize("operator", ["selective_scan", "depthwise_conv1d"])
def test_packed_sequences_are_refused(operator):
    x, bounds = sequence(1, 8, 2), torch.tensor([0, 3, 8])

    def call(x: Tensor, bounds: Tensor) -> Tensor:
        if operator == "depthwise_conv1d":
            return depthwise_conv1d(x, x[0, :2].T, cu_seqlens=bounds)
        return selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1], cu_seqlens=bounds)

    message = f"{operator}: cu_seqlens in an ONNX export must be None, got a tensor; export the model without packing"
    with pytest.raises(torch.onnx.OnnxExporterError, match=message):
        ssm_kernels.onnx.export(Call(call).eval(), (x, bounds))


def test_channels_may_not_be_dynamic():
    made = scan_inputs(1, 8, 6, 2, optional=False)
    tensors = (made.x, made.dt, made.A, made.B, made.C)
    channels = Dim("channels")
    shapes = (({2: channels}, {2: channels}, {0: channels}, None, None),)
    with pytest.raises(
        torch.onnx.OnnxExporterError, match=r"A in an ONNX export must be of fixed size, got s[0-9]+, 2"
    ):
        ssm_kernels.onnx.export(Call(selective_scan).eval(), tensors, dynamic_shapes=shapes)


def scan_of_itself(x: Tensor) -> Tensor:
    return selective_scan(x, x.abs(), -torch.ones(x.shape[-1], 1), x[..., :1], x[..., 1:2])


@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch 2.11 about itself
def test_translation_table_serves_torch_directly(tmp_path):
    """What the documentation shows for models with operators of one's own; the file holds standard operators only."""
    model, x = Call(scan_of_itself).eval(), sequence(1, 8)
    table = ssm_kernels.onnx.translation_table()
    program = torch.onnx.export(model, (x,), dynamo=True, custom_translation_table=table, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in loaded.graph.node} == {""}
    assert not loaded.functions
    check(model, Runtime(program), x)


def test_file_opset_and_names(tmp_path):
    path = tmp_path / "model.onnx"
    model, x = Call(scan_of_itself).eval(), sequence(1, 8)
    program = ssm_kernels.onnx.export(
        model, (x,), path, input_names=["tokens"], output_names=["mixed"], opset_version=20
    )
    loaded = onnx.load(path)
    assert [v.name for v in (*loaded.graph.input, *loaded.graph.output)] == ["tokens", "mixed"]
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 20)]
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    check(model, Runtime(program), x)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(ssm_kernels.onnx, "find_spec", lambda name: importlib.util.find_spec("no_such_module"))
    message = r"ssm_kernels.onnx needs onnx and onnxscript: pip install 'ssm-kernels\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        ssm_kernels.onnx.export(Mamba(4), (sequence(1, 2, 4),))


def test_the_comparison_can_fail():
    model = Call(lambda x: 1.001 * x).eval()
    runtime = Runtime(ssm_kernels.onnx.export(Call(torch.clone).eval(), (sequence(1, 4),)))
    with pytest.raises(AssertionError):
        check(model, runtime, sequence(1, 4))
