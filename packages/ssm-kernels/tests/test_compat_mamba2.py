"""ssm_kernels.compat's Mamba-2: the combined functions, mixers with published weights, caches, steps, packing."""

from pathlib import Path

import pytest
import torch
from ssm_kernels.compat import ssd as compat_ssd
from ssm_kernels.compat.cache import InferenceParams
from ssm_kernels.compat.mamba2 import Mamba2
from ssm_kernels.compat.mamba2_simple import Mamba2Simple
from ssm_kernels.compat.ssd import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from ssm_kernels.ops.ssd import ssd
from torch.nn import functional as F

DATA = Path(__file__).parent / "data"
OPTIONS = {
    "compat": {"d_model": 32, "d_state": 8, "headdim": 8, "ngroups": 2, "chunk_size": 8},
    "variants": {
        "d_model": 24, "d_state": 8, "headdim": 8, "d_ssm": 32, "chunk_size": 8, "rmsnorm": False,
        "D_has_hdim": True, "dt_limit": (0.05, 0.9), "bias": True,
    },
    "simple": {"d_model": 24, "d_state": 8, "headdim": 12, "chunk_size": 8, "learnable_init_states": True},
}  # fmt: skip
VARIANTS = pytest.mark.parametrize(
    "options", [{}, {"D_has_hdim": True, "dt_limit": (0.01, 0.05)}, {"rmsnorm": False, "d_ssm": 8}]
)
SEQUENCES = ("x", "dt", "B", "C", "z")


def loaded(name, **more):
    """Return a mixer with the file's weights in float64, and the file."""
    from safetensors.torch import load_file

    numbers = load_file(DATA / f"mamba_v2_{name}.safetensors")
    mixer = (Mamba2Simple if name == "simple" else Mamba2)(**OPTIONS[name], **more).double()
    mixer.load_state_dict({key.removeprefix("state."): x for key, x in numbers.items() if key.startswith("state.")})
    return mixer, numbers


@pytest.mark.parametrize("name", OPTIONS)
def test_checkpoint_gives_the_published_numbers(name):
    """All keys fit; output and gradients agree in float64 (gradients are stored as float32)."""
    mixer, numbers = loaded(name)
    x = numbers["input.x"].double().requires_grad_()
    y = mixer(x)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-11)
    y.backward(numbers["grad.output.y"].double())
    gradients = {"input.x": x.grad} | {f"state.{key}": p.grad for key, p in mixer.named_parameters()}
    for key, gradient in gradients.items():
        if f"grad.{key}" in numbers:
            expected = numbers[f"grad.{key}"].double()
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_states_and_steps_equal_the_published_ones():
    mixer, numbers = loaded("compat", layer_idx=1)
    cache = InferenceParams(23, 2)
    y = mixer(numbers["input.x"].double(), inference_params=cache)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-11)
    states = dict(zip(("conv_state", "ssm_state"), cache.key_value_memory_dict[1], strict=True))
    for key, state in states.items():
        torch.testing.assert_close(state, numbers[f"output.{key}"].double(), rtol=0, atol=1e-6)
    for i in range(3):
        cache.seqlen_offset = 20 + i
        token = mixer(numbers["input.step_x"][:, i : i + 1].double(), inference_params=cache)
        torch.testing.assert_close(token, numbers[f"output.step{i}.y"].double(), rtol=0, atol=1e-6)
    for key, state in states.items():
        torch.testing.assert_close(state, numbers[f"output.step2.{key}"].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"D_has_hdim": True, "dt_limit": (0.01, 0.05)}, {"rmsnorm": False, "d_ssm": 8}]
)
def test_steps_from_nothing_are_the_sequence(options):
    """With bounds of the step and a D per channel too, where the package's own step fails."""
    torch.manual_seed(0)
    mixer, x = Mamba2(8, d_state=4, headdim=4, **options), torch.randn(2, 6, 8)
    states = mixer.allocate_inference_cache(2, 6)
    tokens = [mixer.step(x[:, t : t + 1], *states)[0] for t in range(6)]
    torch.testing.assert_close(torch.cat(tokens, 1), mixer(x))


@pytest.mark.parametrize(
    "options", [{}, {"D_has_hdim": True, "dt_limit": (0.01, 0.05)}, {"rmsnorm": False, "d_ssm": 8}]
)
def test_filling_the_cache_gives_the_same_result(options):
    torch.manual_seed(0)
    mixer, x = Mamba2(8, d_state=4, headdim=4, layer_idx=0, **options), torch.randn(2, 6, 8)
    torch.testing.assert_close(mixer(x, inference_params=InferenceParams(6, 2)), mixer(x))
    torch.testing.assert_close(mixer(x.flatten(0, 1), seqlen=6), mixer(x).flatten(0, 1))


def test_packed_sequences_equal_one_after_another():
    """By seq_idx while training, by cu_seqlens while the cache is filled; the states go on where each one ended."""
    torch.manual_seed(0)
    mixer, x = Mamba2(8, d_state=4, headdim=4, ngroups=2, layer_idx=0), torch.randn(1, 9, 8)
    parts = [x[:, 0:2], x[:, 2:3], x[:, 3:9]]
    alone = [mixer(part) for part in parts]
    seq_idx = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 2, 2]], dtype=torch.int32)
    torch.testing.assert_close(mixer(x, seq_idx=seq_idx), torch.cat(alone, 1))
    cache = InferenceParams(10, 3)
    bounds = torch.tensor([0, 2, 3, 9], dtype=torch.int32)
    packed = mixer(x, seq_idx=seq_idx, cu_seqlens=bounds, inference_params=cache)
    torch.testing.assert_close(packed, torch.cat(alone, 1))
    torch.testing.assert_close(mixer(x, cu_seqlens=bounds, inference_params=InferenceParams(10, 3)), packed)
    cache.seqlen_offset, token = 9, torch.randn(3, 1, 8)
    whole = [
        mixer(torch.cat([x[:, a:b], token[i : i + 1]], 1))[:, -1:] for i, (a, b) in enumerate(((0, 2), (2, 3), (3, 9)))
    ]
    torch.testing.assert_close(mixer(token, inference_params=cache), torch.cat(whole))


def draw(dtype=torch.float64):
    """Arguments of the combined scan: B 2, L 7, H 4, P 3, G 2, N 5."""
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 7, 4, 3), "dt": (2, 7, 4), "B": (2, 7, 2, 5), "C": (2, 7, 2, 5), "z": (2, 7, 4, 3)}
    x = {key: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for key, shape in shapes.items()}
    rest = {"D": (4,), "dt_bias": (4,), "initial_states": (2, 4, 3, 5)}
    x |= {key: torch.randn(shape, generator=g, dtype=torch.float64) for key, shape in rest.items()}
    return x | {"A": -torch.rand(4, generator=g, dtype=torch.float64), "chunk_size": 4}


def test_combined_scan_is_the_operator():
    x = draw()
    y, last = mamba_chunk_scan_combined(**x, dt_softplus=True, return_final_states=True)
    core = {key: x[key] for key in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")}
    expected, state = ssd(
        **core, initial_state=x["initial_states"], dt_softplus=True, return_final_state=True, impl="reference"
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, state)
    only = mamba_chunk_scan_combined(**x, dt_softplus=True)
    torch.testing.assert_close(only, expected)
    without = {key: value for key, value in x.items() if key != "initial_states"}
    y = compat_ssd.mamba_chunk_scan(**without, dt_softplus=True)
    torch.testing.assert_close(y, compat_ssd.ssd_chunk_scan_combined_ref(**without, dt_softplus=True))


def test_bounds_of_the_step():
    """After bias and softplus; without softplus the default bound 0 takes negative steps away, as there."""
    x = draw()
    core = {key: x[key] for key in ("x", "A", "B", "C", "D", "z")}
    raw = x["dt"] + x["dt_bias"]
    cases = (
        ({"dt_softplus": True, "dt_limit": (0.3, 0.9)}, F.softplus(raw).clamp(0.3, 0.9)),
        ({"dt_softplus": False}, raw.clamp_min(0)),
    )
    for options, step in cases:
        y = mamba_chunk_scan_combined(**core, dt=x["dt"], dt_bias=x["dt_bias"], chunk_size=4, **options)
        torch.testing.assert_close(y, ssd(**core, dt=step, impl="reference"))


def test_rows_of_packed_sequences():
    """seq_idx in several rows, with initial and final states and gradients."""
    x = draw()
    leaves = {key: value.requires_grad_() for key, value in x.items() if key != "chunk_size"}
    seq_idx = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    y, last = mamba_chunk_scan_combined(**x, seq_idx=seq_idx, dt_softplus=True, return_final_states=True)
    expected, ends = torch.zeros_like(y), []
    for row, start, stop in ((0, 0, 4), (0, 4, 7), (1, 0, 1), (1, 1, 7)):
        part = {key: x[key][row : row + 1, start:stop] for key in SEQUENCES}
        state = x["initial_states"][row : row + 1] if start == 0 else None
        rest = {key: x[key] for key in ("A", "D", "dt_bias", "chunk_size")}
        one, end = mamba_chunk_scan_combined(
            **part, **rest, initial_states=state, dt_softplus=True, return_final_states=True
        )
        expected[row, start:stop] = one[0]
        ends += [end] if stop == 7 else []
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, torch.cat(ends))
    got = torch.autograd.grad(y.sin().sum() + last.sum(), list(leaves.values()), retain_graph=True)
    wanted = torch.autograd.grad(expected.sin().sum() + torch.cat(ends).sum(), list(leaves.values()))
    torch.testing.assert_close(got, wanted)


def test_states_of_sequences_in_one_row():
    x = {
        key: value[:1] if key in ("x", "dt", "B", "C", "z", "initial_states") else value
        for key, value in draw().items()
    }
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    y, last, states = mamba_chunk_scan_combined(
        **x, dt_softplus=True, seq_idx=seq_idx, cu_seqlens=bounds, return_final_states=True, return_varlen_states=True
    )
    expected, final = mamba_chunk_scan_combined(**x, dt_softplus=True, seq_idx=seq_idx, return_final_states=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, final)
    torch.testing.assert_close(states[1:], final)
    head = {key: value[:, :3] if key in ("x", "dt", "B", "C", "z") else value for key, value in x.items()}
    torch.testing.assert_close(
        states[:1], mamba_chunk_scan_combined(**head, dt_softplus=True, return_final_states=True)[1]
    )


def test_steps_behind_the_last_sequence_are_padding():
    """cu_seqlens may end before the row does, as mamba-ssm's generation with padding has it."""
    x = draw()
    x |= {key: x[key][:1] for key in (*SEQUENCES, "initial_states")}
    bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
    options = {"dt_softplus": True, "return_final_states": True, "return_varlen_states": True}
    y, last, states = mamba_chunk_scan_combined(**x, cu_seqlens=bounds, **options)
    filled = mamba_chunk_scan_combined(**x, cu_seqlens=torch.tensor([0, 3, 5, 7]), **options)
    torch.testing.assert_close(y, filled[0])
    torch.testing.assert_close(states, filled[2][:2])
    torch.testing.assert_close(last, filled[2][2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype):
    """dt, A, D and biases stay float32, as mixers pass them; states come in float32."""
    x = {key: value.float() if torch.is_tensor(value) else value for key, value in draw().items()}
    x |= {key: x[key].to(dtype) for key in ("x", "B", "C", "z")}
    y, last = mamba_chunk_scan_combined(**x, dt_softplus=True, return_final_states=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    assert y.isfinite().all()


def test_combined_block_under_autocast():
    """The projection runs in the autocast dtype, the scan keeps its float32 state."""
    mixer = Mamba2(8, d_state=4, headdim=4)
    x = torch.randn(2, 5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), mixer(x), rtol=0.05, atol=0.02)
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_keys_shapes_and_dtypes_of_a_half_precision_model():
    mixer = Mamba2(32, d_state=16, headdim=16, ngroups=2, d_conv=3, dtype=torch.float16, layer_idx=0)
    shapes = {key: (tuple(x.shape), x.dtype) for key, x in mixer.state_dict().items()}
    half, single = torch.float16, torch.float32
    assert shapes == {
        "dt_bias": ((4,), half),
        "A_log": ((4,), half),
        "D": ((4,), single),
        "in_proj.weight": ((2 * 64 + 2 * 2 * 16 + 4, 32), half),
        "conv1d.weight": ((128, 1, 3), half),
        "conv1d.bias": ((128,), half),
        "norm.weight": ((64,), half),
        "out_proj.weight": ((32, 64), half),
    }
    conv_state, ssm_state = mixer.allocate_inference_cache(2, 7)
    assert (conv_state.shape, ssm_state.shape) == ((2, 128, 3), (2, 4, 16, 16))
    assert {p.device.type for p in Mamba2(32, headdim=16, device="meta").parameters()} == {"meta"}
    assert Mamba2(32, headdim=16, conv_init=0.25).conv1d.weight.abs().max() <= 0.25
    assert 1 <= Mamba2(32, headdim=16).A_log.exp().min() <= 16


def test_wrong_use_is_named():
    x = draw()
    block = torch.randn(1, 5, 60), torch.randn(34, 3), None, torch.ones(4), -torch.ones(4), torch.ones(4), 8
    for call, message in (
        (lambda: Mamba2(8, headdim=5), "Mamba2: headdim must be a divisor of the 16 channels.*, got 5"),
        (lambda: Mamba2(8, headdim=4, ngroups=3), "Mamba2: ngroups must be a divisor of the 4 heads, got 3"),
        (lambda: Mamba2(8, headdim=4, A_init_range=(2, 1)), "A_init_range must be two positive numbers"),
        (lambda: Mamba2(8, headdim=4, process_group=object()), "Mamba2: process_group must be None"),
        (lambda: Mamba2(8, headdim=4)(torch.randn(2, 3, 7)), r"Mamba2: x must be \(B, L, 8\), got \(2, 3, 7\)"),
        (
            lambda: Mamba2(8, headdim=4).step(torch.randn(2, 3, 8), None, None),
            r"step: hidden_states must be \(B, 1, 8\)",
        ),
        (lambda: mamba_chunk_scan_combined(**x, return_varlen_states=True), "cu_seqlens must be the bounds"),
        (lambda: mamba_chunk_scan_combined(**x, seq_idx=torch.zeros(2, 6)), r"seq_idx must be \(B, L\) = \(2, 7\)"),
        (lambda: mamba_split_conv1d_scan_combined(*block, torch.ones(4), 8), "headdim must be the channels of a head"),
        (lambda: mamba_split_conv1d_scan_combined(*block, torch.ones(4), 8, headdim=9), "conv1d_weight must be"),
        (
            lambda: mamba_split_conv1d_scan_combined(*block, torch.ones(4), 8, headdim=6),
            r"zxbcdt must be \(B, L, 2 M \+ 62\)",
        ),
        (
            lambda: mamba_split_conv1d_scan_combined(*block, torch.ones(4), 8, headdim=4, outproj_bias=torch.ones(4)),
            "outproj_bias must be None without outproj_weight",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
