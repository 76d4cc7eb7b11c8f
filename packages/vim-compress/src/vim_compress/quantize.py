"""Smaller numbers for the matrix products, by torchao: int8, fp8, and two of four weights zero.

Only in_proj, out_proj, x_proj, qkv, proj, fc1 and fc2 change. The recurrence (A, D, steps), convolutions, norms and the
head stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from .checks import refuse
from .mixer import VimMixer

Kind = Literal["int8-weights", "int8", "fp8", "2:4"]
LAYERS = ("in_proj", "out_proj", "x_proj", "x_proj_b", "qkv", "proj", "fc1", "fc2")
MULTIPLES = {"int8-weights": 1, "int8": 1, "fp8": 16, "2:4": 32}  # that rows and columns must be for the kernels


def quantizable(module: nn.Module, name: str, multiple: int = 1) -> bool:
    """Say whether a layer may be quantised by kernels that want multiples of a number of rows and columns."""
    if not isinstance(module, nn.Linear) or name.rpartition(".")[2] not in LAYERS:
        return False
    return module.out_features % multiple == module.in_features % multiple == 0


def quantize(model: nn.Module, kind: Kind) -> int:
    """Quantise a network in place and return how many layers changed.

    Args:
        model: Trained, in eval mode, on the device where it will run; bfloat16 or float16 for "2:4".
        kind: "int8-weights": weights only. "int8": activations too, with a scale for each token. "fp8": the same in
            float8, on GPUs from Hopper on; layers whose sizes are no multiples of 16 stay as they are, as x_proj often
            does. "2:4": two of four neighbouring weights, those of smallest magnitude, are set to zero and left out by
            the GPU; layers whose sizes are no multiples of 32 stay dense.

    Raises:
        ValueError: The kind is unknown, torchao is missing, or the device cannot do it.
    """
    if kind not in get_args(Kind):
        refuse("quantize", "kind", f"one of {', '.join(get_args(Kind))}", repr(kind), "int8-weights runs anywhere")
    device = next(model.parameters()).device
    if kind in ("fp8", "2:4") and device.type != "cuda":
        refuse("quantize", "device", f"a CUDA GPU for kind={kind!r}", str(device), "use int8-weights or int8 here")
    for module in model.modules():
        if isinstance(module, VimMixer):
            module.melt()  # what was derived from the weights before
    if kind == "2:4":
        return _make_sparse(model)
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise ValueError(f"quantize: needs torchao ({error}); pip install 'vim-compress[quantize]'") from error
    configs = {
        "int8-weights": Int8WeightOnlyConfig,
        "int8": Int8DynamicActivationInt8WeightConfig,
        "fp8": Float8DynamicActivationFloat8WeightConfig,
    }
    chosen = partial(quantizable, multiple=MULTIPLES[kind])
    count = sum(chosen(m, n) for n, m in model.named_modules())
    quantize_(model, configs[kind](), filter_fn=chosen)
    return count


def in_half(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Cast a network to bfloat16, the recurrence excepted, and return it as a function of float32 pictures."""
    from .saved import keep_single

    keep_single(model, torch.bfloat16)
    return lambda x: model(x.to(torch.bfloat16))


@torch.no_grad()
def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Return a mask that keeps the two largest of every four neighbours along the last dimension."""
    groups = weight.detach().abs().unflatten(-1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(-1, groups.topk(2, -1).indices, True)
    return kept.flatten(-2)


@torch.no_grad()
def _make_sparse(model: nn.Module) -> int:
    from torch.sparse import to_sparse_semi_structured

    count = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not quantizable(module, name, MULTIPLES["2:4"]):
            continue
        zeroed = module.weight * two_of_four(module.weight)
        module.weight = nn.Parameter(to_sparse_semi_structured(zeroed), requires_grad=False)
        count += 1
    return count
