"""Kept launches give what Triton's own launches give, whatever changes between them."""

import pytest
import torch
import triton
import triton.language as tl
from ssm_kernels.ops import launch as kept
from ssm_kernels.ops.launch import launch

WHERE = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@triton.jit(do_not_specialize=["size"])
def scale_kernel(x, extra, y, size, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32) * factor
    if extra is not None:
        value += tl.load(extra + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(y + i, value.to(y.dtype.element_ty), mask=i < size)


def scaled(x, factor, extra=None, key=None, block=32):
    y = torch.empty_like(x)
    tensors = {"x": x, "extra": extra, "y": y, "size": x.numel()}
    key = (factor, block) if key is None else key
    launch(scale_kernel, triton.cdiv(x.numel(), block), key, tensors, lambda: {"factor": factor, "BLOCK": block})
    return y


@pytest.mark.parametrize("device", WHERE)
def test_what_changes_between_launches_is_seen(device):
    """Sizes, tensors, dtypes, alignment, an argument that is there or not, and what the key stands for."""
    numbers = torch.arange(1.0, 102.0, device=device)
    for dtype in (torch.float32, torch.float16, torch.float32):
        for begin, end in ((0, 101), (0, 64), (1, 60), (3, 101), (0, 1)):
            x = numbers.to(dtype)[begin:end]  # not always aligned to 16 bytes
            for factor in (2.0, 3.0):
                assert torch.equal(scaled(x, factor), (x.float() * factor).to(dtype))
            assert torch.equal(scaled(x, 2.0, extra=numbers[begin:end]), (x.float() * 2 + numbers[begin:end]).to(dtype))


@pytest.mark.parametrize("device", WHERE)
def test_more_kinds_than_are_kept(monkeypatch, device):
    monkeypatch.setattr(kept, "LIMIT", 3)
    x = torch.ones(5, device=device)
    assert [scaled(x, float(factor))[0].item() for factor in (1, 2, 3, 4, 5, 1, 2)] == [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.gpu
def test_constants_are_made_once():
    x, made = torch.ones(7, device="cuda"), []

    def constants():
        made.append(1)
        return {"factor": 4.0, "BLOCK": 32}

    for size in (7, 5, 3):
        y = torch.zeros_like(x)
        launch(scale_kernel, 1, "once", {"x": x, "extra": None, "y": y, "size": size}, constants)
        assert y.sum().item() == 4 * size
    assert len(made) == 1
