"""`warmup` leaves nothing behind, and what it compiled serves every batch and length."""

import subprocess
import sys

import pytest
import torch
from ssm_kernels import nn, selective_scan, selective_scan_2d, selective_scan_bidirectional, warmup
from ssm_kernels.testing import scan_inputs
from torch import nn as torch_nn

FIRST_CALL = """
import time, torch
from ssm_kernels import {name} as operator
{arguments}
start = time.perf_counter()
y = operator(*inputs, **options)
torch.cuda.synchronize()
middle = time.perf_counter()
y.float().sum().backward()
torch.cuda.synchronize()
print(middle - start, time.perf_counter() - middle)
"""
DRAW = """
def draw(*shape): return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
def weights(*shape): return (-torch.rand(shape, device="cuda")).requires_grad_()
"""
SCAN = "(draw(2, 197, 384), draw(2, 197, 384), weights(384, 16), draw(2, 197, 16), draw(2, 197, 16), weights(384))"
PLANE = (
    "(draw(2, 24, 24, 180), draw(2, 24, 24, 4, 180), weights(4, 180, 16), draw(2, 24, 24, 4, 16), "
    "draw(2, 24, 24, 4, 16), weights(4, 180), weights(4, 180))"
)
FIRST = {
    "selective_scan": f"inputs = {SCAN}\noptions = dict(z=draw(2, 197, 384), dt_bias=weights(384), dt_softplus=True)",
    "selective_scan_bidirectional": f"inputs = (*{SCAN}, weights(384), *{SCAN}, weights(384))\noptions = {{}}",
    "selective_scan_2d": f"inputs = {PLANE}\noptions = {{}}",
    "ssd": "inputs = (draw(2, 197, 6, 64), draw(2, 197, 6), weights(6), draw(2, 197, 1, 64), draw(2, 197, 1, 64), "
    "weights(6))\noptions = dict(dt_bias=weights(6), dt_softplus=True)",
    "linear_scan": "inputs = (draw(2, 197, 384), *(torch.complex(weights(384, 32), weights(384, 32)) for _ in 'ABC'), "
    "weights(384).exp())\noptions = {}",
    "window_attention": "inputs = [draw(1, 32, 32, 6, 30) for _ in 'qkv']\n"
    "options = dict(window=16, shift=8, bias_table=weights(961, 6))",
    "sliding_window_attention": "inputs = [draw(1, 32, 32, 4, 32) for _ in 'qkv']\noptions = dict(window=7, ndim=2)",
    "layer_norm": "inputs = (draw(2, 197, 192), weights(192), weights(192))\noptions = {}",
    "depthwise_conv1d": "inputs = (draw(2, 197, 384), weights(384, 4), weights(384))\noptions = {'activation': 'silu'}",
}


class Counting(torch_nn.Module):
    """A mixer behind dropout and a batch norm: what a call could leave behind."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.mixer = torch_nn.BatchNorm1d(8), torch_nn.Dropout(0.5), nn.Mamba(8)

    def forward(self, x):
        return {"y": (self.mixer(self.drop(self.norm(x.mT).mT)), None)}


def test_nothing_is_left_behind():
    torch.manual_seed(0)
    model = Counting()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    done = warmup(model, torch.randn(2, 5, 8, requires_grad=True, generator=torch.Generator().manual_seed(1)))
    assert done.kernels == () and done.seconds > 0  # no GPU, no compiler
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_backward_is_called_only_if_asked_for():
    called = []

    def function(x):
        x.register_hook(lambda _: called.append("backward"))
        return x * 2

    x = torch.ones(3, requires_grad=True)
    warmup(lambda x: function(x) if x.requires_grad and torch.is_grad_enabled() else x, x, backward=False)
    assert not called
    warmup(function, x)
    assert called == ["backward"]


def calls(batch, length, dtype):
    """One call of every scan at this size, forward and backward; widths and options as in the models of the field."""
    one = scan_inputs(batch, length, 96, 16, dtype=dtype, device="cuda").kwargs()
    one.pop("initial_state")
    scan = [t.requires_grad_() for t in one.values()]
    names = list(one)
    direction = [one[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")]
    plane = [one["x"][:, None], one["dt"][:, None, :, None].expand(-1, -1, -1, 4, -1), one["A"].expand(4, -1, -1)]
    plane += [one[name][:, None, :, None].expand(-1, -1, -1, 4, -1) for name in ("B", "C")]
    plane += [one[name].expand(4, -1) for name in ("D", "dt_bias")]
    return [
        (lambda *t: selective_scan(**dict(zip(names, t, strict=True)), dt_softplus=True), scan),
        (lambda *t: selective_scan_bidirectional(*t, *t, z=one["z"]), direction),
        (selective_scan_2d, plane),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_compilation_serves_every_batch_and_length(dtype):
    """The sizes lie on both sides of the choice between whole rows and spans, and are 1, odd and divisible by 16."""
    for function, arguments in [*calls(2, 64, dtype), *calls(1, 2000, dtype), *calls(400, 64, dtype)]:
        warmup(function, *arguments)
    for size in ((1, 1), (3, 77), (16, 333), (1, 4096), (7, 1501), (511, 50)):
        for function, arguments in calls(*size, dtype):
            assert warmup(function, *arguments).kernels == (), size


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_first_call_takes_ten_seconds_at_most(name, tmp_path, monkeypatch):
    """In a new process, with nothing in Triton's cache: forward and backward each."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = FIRST_CALL.format(name=name, arguments=DRAW + FIRST[name])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forward, backward = (float(word) for word in done.stdout.split())
    assert max(forward, backward) <= 10, f"forward {forward:.1f} s, backward {backward:.1f} s"
