"""`selective_scan` gives the numbers of the published implementations that trained the checkpoints people have.

The files hold float32 inputs in the (B, D, L) layout of those implementations, float64 results of their code, and an
absolute tolerance per tensor for float32 (ten times the error of their own float32 run).
"""

import json
from pathlib import Path

import pytest
import torch
from ssm_kernels.ops.selective_scan import selective_scan

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for pattern in ("scan-*", "mamba_selective_scan_*") for path in DATA.glob(pattern))
NAMES = {"u": "x", "delta": "dt", "delta_bias": "dt_bias"}
SEQUENCES = ("x", "dt", "z")


DTYPES = {"F64": torch.float64, "F32": torch.float32, "I8": torch.int8}


@pytest.fixture
def case(request):
    """Read a safetensors file (its length, a JSON header, the numbers): this package does not depend on the library."""
    content = bytearray((DATA / f"{request.param}.safetensors").read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__")
    tensors = {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = torch.frombuffer(content[start + begin : start + end], dtype=DTYPES[entry["dtype"]])
        tensors[key] = numbers.reshape(entry["shape"])
    return tensors, metadata


def channels_last(name, x, wide, length):
    """Bring a tensor of the file into our layout; weights that do not vary in time become one group per channel."""
    if name in SEQUENCES:
        return x.transpose(1, 2)
    if name not in ("B", "C"):
        return x
    batch, channels, any_constant = wide
    if x.dim() == 2:
        return x.expand(batch, length, *x.shape)
    x = x.permute(0, 3, 1, 2) if x.dim() == 4 else x.transpose(1, 2)
    if not any_constant:
        return x
    x = x[:, :, None] if x.dim() == 3 else x
    return x.repeat_interleave(channels // x.shape[2], 2)


def run(tensors, metadata, dtype, impl):
    """Return y, the last state and the gradients of all inputs, under the keys and in the layout of the file."""
    leaves = {
        NAMES.get(key[6:], key[6:]): x.to(dtype).requires_grad_()
        for key, x in tensors.items()
        if key.startswith("input.") and "cotangent" not in key
    }
    batch, channels, length = leaves["x"].shape
    wide = batch, channels, leaves["B"].dim() == 2 or leaves["C"].dim() == 2
    arguments = {name: channels_last(name, x, wide, length) for name, x in leaves.items()}
    softplus = json.loads(metadata["config"])["delta_softplus"]
    y, final = selective_scan(**arguments, dt_softplus=softplus, return_final_state=True, impl=impl)
    y = y.transpose(1, 2)
    found = {"output.y": y, "output.last_state": final}
    cotangent = tensors.get("input.cotangent", tensors.get("grad.output.y"))
    if cotangent is not None:
        file_names = {ours: theirs for theirs, ours in NAMES.items()}
        grads = torch.autograd.grad(y, list(leaves.values()), cotangent.to(dtype))
        found |= {f"grad.input.{file_names.get(name, name)}": g for name, g in zip(leaves, grads, strict=True)}
    return {key: value.detach() for key, value in found.items()}


def wanted(tensors):
    return {key: x for key, x in tensors.items() if key.startswith(("output.", "grad.input."))}


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_float64_is_the_published_result(case, impl):
    tensors, metadata = case
    found = run(tensors, metadata, torch.float64, impl)
    for key, truth in wanted(tensors).items():
        # softplus turns linear at 20 there too, at another rounding; float32 copies in the file carry their rounding
        rounding = 1e-8 if "extreme" in metadata["case"] else 1e-12
        tolerance = 1e-6 if truth.dtype == torch.float32 else rounding
        error = (found[key] - truth).abs().max() / truth.abs().max().clamp_min(1)
        assert error <= tolerance, f"{key}: {error:.1e}"


@pytest.mark.parametrize(
    ("device", "impl"),
    [
        ("cpu", "torch"),
        pytest.param("cuda", "triton", marks=pytest.mark.gpu),
        pytest.param("cuda", "torch", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_float32_is_within_ten_times_the_published_codes_own_error(case, device, impl):
    tensors, metadata = case
    tolerances = json.loads(metadata.get("suggested_atol_float32") or metadata["float32_atol"])
    found = run({key: x.to(device) for key, x in tensors.items()}, metadata, torch.float32, impl)
    for key, truth in wanted(tensors).items():
        error = (found[key].cpu() - truth).abs().max()
        assert error <= tolerances[key], f"{key}: {error:.1e}, allowed {tolerances[key]:.1e}"


def test_every_case_is_there():
    assert len(CASES) == 13
