"""nn.SlidingWindowAttention: what a token sees, key names, ONNX, errors."""

import pytest
import torch
from ssm_kernels.nn import SlidingWindowAttention


def reach(module, x, place):
    """Return which tokens the output at a place depends on."""
    x = x.requires_grad_()
    (grad,) = torch.autograd.grad(module(x)[place].sum(), x)
    return grad[0].abs().sum(-1) > 0


def test_a_token_of_a_sequence_sees_its_band():
    torch.manual_seed(0)
    module = SlidingWindowAttention(12, 3, 2, ndim=1)
    x = torch.randn(1, 9, 12)
    assert reach(module, x, (0, 4)).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert reach(module, x, (0, 0)).nonzero().flatten().tolist() == [0, 1, 2]


def test_a_pixel_sees_a_whole_square_at_every_border():
    torch.manual_seed(0)
    module = SlidingWindowAttention(12, 3, 3)
    x = torch.randn(1, 6, 7, 12)
    assert reach(module, x, (0, 2, 3))[1:4, 2:5].all()
    assert reach(module, x, (0, 0, 6))[:3, 4:].all()
    for place in [(0, 2, 3), (0, 0, 6), (0, 5, 0)]:
        assert reach(module, x, place).sum() == 9


def test_a_square_of_the_whole_picture_is_plain_attention():
    torch.manual_seed(0)
    module = SlidingWindowAttention(12, 3, 5)
    x = torch.randn(2, 5, 5, 12)
    qkv = module.qkv(x).reshape(2, 25, 3, 3, 4).permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(2, 5, 5, 12)
    torch.testing.assert_close(module(x), module.proj(y))


def test_keys_of_the_state_dict():
    shapes = {key: tuple(x.shape) for key, x in SlidingWindowAttention(48, 6, 7).state_dict().items()}
    assert shapes == {"qkv.weight": (144, 48), "qkv.bias": (144,), "proj.weight": (48, 48), "proj.bias": (48,)}
    assert "qkv.bias" not in SlidingWindowAttention(48, 6, 7, qkv_bias=False).state_dict()


@pytest.mark.usefixtures("lean_exporter")
@pytest.mark.parametrize(("ndim", "sizes", "others"), [(1, (11,), (17,)), (2, (5, 8), (9, 4))])
def test_runs_in_onnx_with_any_batch_and_size(tmp_path, ndim, sizes, others):
    """One file for all sizes, equal to PyTorch on sizes that it was not exported with."""
    import onnxruntime
    import ssm_kernels.onnx as ssm_onnx

    torch.manual_seed(0)
    module = SlidingWindowAttention(8, 2, 2 + ndim, ndim=ndim).eval()
    torch.nn.init.normal_(module.qkv.weight)
    names = ("batch", "height", "width") if ndim == 2 else ("batch", "length")
    dims = ({i: torch.export.Dim(name, min=1 if i == 0 else 4, max=512) for i, name in enumerate(names)},)
    path = tmp_path / "model.onnx"
    ssm_onnx.export(module, (torch.randn(2, *sizes, 8),), path, dynamic_shapes=dims)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((2, *sizes, 8), (3, *others, 8)):
        x = torch.randn(shape)
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), module(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        (r"dim must be a multiple of heads = 5, got 12", lambda: SlidingWindowAttention(12, 5, 3)),
        (r"ndim must be 1 or 2, got 3", lambda: SlidingWindowAttention(12, 3, 3, ndim=3)),
        (
            r"x must be \(B, H, W, 12\), got \(1, 6, 12\)",
            lambda: SlidingWindowAttention(12, 3, 3)(torch.zeros(1, 6, 12)),
        ),
        (
            r"x must be \(B, L, 12\), got \(1, 6, 8\)",
            lambda: SlidingWindowAttention(12, 3, 3, ndim=1)(torch.zeros(1, 6, 8)),
        ),
    ],
)
def test_refuses_bad_input(message, make):
    with pytest.raises(ValueError, match=f"^SlidingWindowAttention: {message}"):
        make()
