"""nn.WindowAttention and nn.OverlappingWindowAttention: key names, geometry, generated tables, errors."""

import subprocess
import sys

import pytest
import torch
from ssm_kernels.nn import OverlappingWindowAttention, WindowAttention
from torch.nn import functional as F


def plain_attention(module, x):
    """One window over the whole picture, by the textbook, without a bias."""
    batch, height, width, channels = x.shape
    qkv = module.qkv(x).reshape(batch, height * width, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(*qkv)
    return module.proj(y.transpose(1, 2).reshape(batch, height, width, channels))


def test_one_window_is_plain_attention():
    torch.manual_seed(0)
    module = WindowAttention(12, 3, 6, position_bias=False)
    x = torch.randn(2, 6, 6, 12)
    torch.testing.assert_close(module(x), plain_attention(module, x))


def test_windows_do_not_meet_without_a_shift():
    module = WindowAttention(12, 3, 4)
    x = torch.randn(1, 8, 8, 12, requires_grad=True)
    module(x)[0, :4, :4].sum().backward()
    assert x.grad is not None
    assert x.grad[0, :4, :4].abs().min() > 0
    assert not x.grad[0, 4:].any()
    assert not x.grad[0, :, 4:].any()


def test_shifted_windows_join_neighbours_and_keep_borders_apart():
    """A pixel beside a border of the plain windows sees across it; opposite borders of the picture stay apart."""
    module = WindowAttention(12, 3, 4, shift=2)
    x = torch.randn(1, 8, 8, 12, requires_grad=True)
    grad = torch.autograd.grad(module(x)[0, 3, 3].sum(), x)[0][0].abs().sum(-1) > 0
    assert grad[2:6, 2:6].all()
    assert grad.sum() == 16
    grad = torch.autograd.grad(module(x)[0, 0, 0].sum(), x)[0][0].abs().sum(-1) > 0
    assert grad[:2, :2].all()
    assert grad.sum() == 4


def test_overlapping_windows_reach_beyond_their_own():
    """Window 4 with ratio 0.5 sees one pixel more on every side."""
    module = OverlappingWindowAttention(12, 3, 4)
    x = torch.randn(1, 12, 12, 12, requires_grad=True)
    grad = torch.autograd.grad(module(x)[0, 5, 5].sum(), x)[0][0].abs().sum(-1) > 0
    assert grad[3:9, 3:9].all()
    assert grad.sum() == 36


@pytest.mark.parametrize(("module_class", "rows"), [(WindowAttention, 31**2), (OverlappingWindowAttention, 39**2)])
def test_keys_and_shapes_of_published_checkpoints(module_class, rows):
    shapes = {key: tuple(x.shape) for key, x in module_class(48, 6, 16).state_dict().items()}
    assert shapes == {
        "qkv.weight": (144, 48),
        "qkv.bias": (144,),
        "proj.weight": (48, 48),
        "proj.bias": (48,),
        "relative_position_bias_table": (rows, 6),
    }
    small = module_class(48, 6, 16, position_bias=False, qkv_bias=False)
    assert set(small.state_dict()) == {"qkv.weight", "proj.weight", "proj.bias"}


def test_a_generated_table_replaces_the_own_one():
    """The table that a caller passes is used and gets the gradient."""
    torch.manual_seed(0)
    own = OverlappingWindowAttention(12, 3, 4)
    bare = OverlappingWindowAttention(12, 3, 4, position_bias=False)
    values = own.state_dict()
    table = values.pop("relative_position_bias_table").requires_grad_()
    bare.load_state_dict(values)
    x = torch.randn(1, 8, 8, 12)
    y = bare(x, table)
    torch.testing.assert_close(y, own(x))
    assert not torch.allclose(y, bare(x))
    (gradient,) = torch.autograd.grad(y.square().sum(), table)
    assert gradient.abs().min() > 0


def test_initial_values():
    torch.manual_seed(0)
    module = OverlappingWindowAttention(96, 6, 16)
    assert module.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.relative_position_bias_table is not None
    assert module.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.05)
    assert not module.qkv.bias.any()


def test_compiles_without_a_break():
    module = OverlappingWindowAttention(12, 3, 4)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(2, 8, 16, 12)
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowAttention(10, 3, 4), "WindowAttention: dim must be a multiple of heads = 3, got 10"),
        (lambda: OverlappingWindowAttention(12, 3, 4, overlap_ratio=0.25), r"window \* overlap_ratio must be even"),
        (lambda: OverlappingWindowAttention(12, 3, 4, overlap_ratio=0.0), "keys of 4 pixels"),
        (lambda: WindowAttention(12, 3, 4)(torch.zeros(1, 8, 8, 6)), r"x must be \(B, H, W, 12\), got \(1, 8, 8, 6\)"),
        (lambda: WindowAttention(12, 3, 4)(torch.zeros(1, 8, 6, 12)), "pad W by 2 and crop the result"),
        (lambda: WindowAttention(12, 3, 4, shift=4)(torch.zeros(1, 8, 8, 12)), r"shift must be in 0\.\.3, got 4"),
    ],
)
def test_refuses_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_modules_are_imported_when_used():
    """`import ssm_kernels.nn` alone is quick: no torch. An unknown name is an AttributeError."""
    code = """
import sys, ssm_kernels.nn as nn
assert "torch" not in sys.modules
try:
    nn.Transformer
except AttributeError as error:
    assert "Transformer" in str(error)
else:
    raise SystemExit("no error")
assert set(nn.__all__) >= {"Mamba", "BidirectionalMamba", "SS2D", "WindowAttention", "OverlappingWindowAttention"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
