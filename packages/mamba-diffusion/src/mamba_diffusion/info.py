"""What a network costs: parameters, multiplications and scan operations, without running or allocating it."""

from __future__ import annotations

from typing import Any

import torch
from ssm_kernels.nn import BidirectionalMamba, Mamba
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .condition import Condition
from .config import SEED_CLAIMS, ModelConfig
from .config import preset as make_config
from .legacy import LegacyScan
from .mamba2 import Mamba2
from .model import SparseField

ACTIVATIONS = 4  # bytes of a float32


def model_info(preset: str | ModelConfig, sensors: int = 205, queries: int = 1024) -> dict[str, Any]:
    """Count parameters and operations of one evaluation of the velocity.

    Args:
        preset: Name of a preset, or a configuration.
        sensors: Ni.
        queries: Nq.

    Returns:
        "preset"; "sensors"; "queries"; "parameters" and, where the seed names a number, "seed_claims"; "macs":
        multiply-adds of matrix products and attention (half of PyTorch's flop count); "scan_ops": (9 N + 1) per
        channel and token of a selective scan, 2 N of a legacy one; "weights_bytes" in float32; "parts": parameters by
        module.

    Raises:
        ValueError: Unknown preset, or a count below its least.
    """
    if sensors < 4 or queries < 1:
        raise ValueError(f"model_info: sensors must be at least 4 and queries 1, got {sensors} and {queries}")
    config = preset if isinstance(preset, ModelConfig) else make_config(preset)
    with torch.device("meta"):
        model = SparseField(config).eval().requires_grad_(requires_grad=False)
    parameters = sum(p.numel() for p in model.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        noisy, given = empty_inputs(config, sensors, queries)
        model(noisy, torch.zeros(1, device="meta"), given)
    name = preset if isinstance(preset, str) else "custom"
    return {
        "preset": name,
        "sensors": sensors,
        "queries": queries,
        "parameters": parameters,
        **({"seed_claims": SEED_CLAIMS[name]} if name in SEED_CLAIMS else {}),
        "macs": counter.get_total_flops() // 2,
        "scan_ops": scan_operations(model, sensors, queries),
        "weights_bytes": ACTIVATIONS * parameters,
        "parts": {n: sum(p.numel() for p in m.parameters()) for n, m in model.network.named_children()},
    }


def empty_inputs(
    config: ModelConfig, sensors: int, queries: int, device: str | torch.device = "meta"
) -> tuple[torch.Tensor, Condition]:
    """Return noise and a condition of the right shapes for one field; on a real device random ones."""
    make = lambda *shape: torch.rand(*shape, device=device)  # noqa: E731
    coords, values, places = (
        make(1, sensors, config.dims),
        make(1, sensors, config.channels),
        make(1, queries, config.dims),
    )
    noisy = make(1, queries, config.channels)
    if torch.device(device).type != "meta":
        return noisy, SparseField.prepare(SparseField(config).to(device), coords, values, places)
    anchors = min(queries, config.anchors)
    index = lambda *shape: torch.zeros(*shape, dtype=torch.int64, device=device)  # noqa: E731
    given = Condition(coords, values, places, noisy, noisy)
    if config.kind != "ours":
        return noisy, given
    return noisy, given._replace(
        doubt=noisy,
        surprise=values,
        centre=values[:, :1],
        scale=values[:, :1],
        near_input=index(1, sensors, min(sensors - 1, config.neighbours)),
        near=index(1, queries, min(sensors, config.neighbours)),
        anchor=index(1, anchors),
        near_anchor=index(1, queries, min(anchors, config.anchor_neighbours)),
        context_order=index(1, sensors + anchors),
    )


def scan_operations(model: nn.Module, sensors: int, queries: int) -> int:
    """Return the operations of all scans over one field's tokens."""
    total = 0
    for module in model.modules():
        tokens = sensors + queries
        if isinstance(module, BidirectionalMamba):
            assert isinstance(model, SparseField)
            tokens = sensors + min(queries, model.config.anchors)
            total += 2 * (9 * module.A_log.shape[1] + 1) * module.A_log.shape[0] * tokens
        elif isinstance(module, Mamba):
            total += (9 * module.A_log.shape[1] + 1) * module.A_log.shape[0] * tokens
        elif isinstance(module, Mamba2):
            total += (9 * module.d_state + 1) * module.inner * tokens
        elif isinstance(module, LegacyScan):
            total += 2 * len(module.A_log) * tokens
    return total
