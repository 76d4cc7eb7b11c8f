"""Record a network's forward and backward pass once and replay them: the host then starts two things a step.

Small networks are bound by the host, which starts thousands of kernels a step; a recorded pass takes it no time.
"""

from __future__ import annotations

import torch

from .model import HybridSR
from .recipes import TrainConfig

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_device(device: torch.device) -> None:
    """Refuse to record where there is no CUDA.

    Raises:
        ValueError: The device is no CUDA GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"train: --graph must have a CUDA GPU, got {device.type}; leave it out here")


def record(network: HybridSR, cfg: TrainConfig, device: torch.device) -> None:
    """Replace the training pass of a network by its recording for the run's crops.

    Args:
        network: On the device; outside of training it runs as before.
        cfg: Gives batch, crop and precision.
        device: A CUDA GPU, that of the network.

    Source: torch.cuda.make_graphed_callables.
    """
    # the recording keeps autograd nodes of its own stream alive, on purpose; PyTorch 2.11 warns of that at every replay
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    network.train()
    crops = torch.zeros(cfg.micro_batch, 3, cfg.patch, cfg.patch, device=device)
    with torch.autocast("cuda", DTYPES[cfg.precision], enabled=cfg.precision != "no", cache_enabled=False):
        torch.cuda.make_graphed_callables(network, (crops,))
