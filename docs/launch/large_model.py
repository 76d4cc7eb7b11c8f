"""Train a stack of Vision Mamba mixers that need not fit on one GPU: on one process, with DDP, with FSDP2.

    accelerate launch --config_file docs/launch/fsdp2.yaml docs/launch/large_model.py --width 4096 --depth 32
    python docs/launch/large_model.py --width 32 --depth 2 --side 8 --steps 2          # on a CPU, in seconds

The task is made up (which of four ways does a wave run), so that nothing has to be downloaded. The last line is JSON:
parameters, processes, loss at the first and the last step, samples a second, and the most memory a process had, beside
what whole float32 weights, gradients and two moments would take on every process.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from accelerate import Accelerator
from ssm_kernels.nn import BidirectionalMamba
from torch import Tensor, nn

CLASSES, PATCH, SKIPPED = 4, 4, 3  # steps that the clock leaves out


class Block(nn.Module):
    """One mixer with its norm; FSDP2 cuts and puts together these."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = BidirectionalMamba(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        return x + self.mixer(self.norm(x))


class Classifier(nn.Module):
    """Patches, blocks, mean, linear."""

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.place = nn.Parameter(0.02 * torch.randn((side // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (batch, 1, side, side) to logits (batch, CLASSES)."""
        x = self.patches(x).flatten(2).mT + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def waves(batch: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pictures of waves in noise, (batch, 1, side, side), and the number of each one's direction, (batch,)."""
    label = torch.randint(CLASSES, (batch,), device=device)
    angle = (label * math.pi / CLASSES)[:, None, None]
    y, x = torch.meshgrid(*2 * [torch.arange(side, device=device)], indexing="ij")
    wave = torch.sin(0.5 * (x * angle.cos() + y * angle.sin()) + 6.28 * torch.rand(batch, 1, 1, device=device))
    return (wave + 0.3 * torch.randn(batch, side, side, device=device))[:, None], label


def main() -> None:
    """Train and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 1024), ("depth", 24), ("side", 64), ("batch", 8), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--limit-gib", type=float, help="memory that a process may take of its GPU, to try a smaller one"
    )
    options = parser.parse_args()
    accelerator = Accelerator()
    device = accelerator.device
    if options.limit_gib is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.limit_gib * 2**30 / total, device)
    torch.manual_seed(0)  # the same first weights on every process
    model = Classifier(options.width, options.depth, options.side)
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    try:
        model, optimizer = accelerator.prepare(model, optimizer)
        losses, seconds = train(accelerator, model, optimizer, options)
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"large_model: process {accelerator.process_index}: {str(error).splitlines()[0]}") from error
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    if accelerator.is_main_process:
        timed = max(1, options.steps - SKIPPED)
        row = {
            "parameters": parameters,
            "processes": accelerator.num_processes,
            "kind": accelerator.distributed_type.value,
        }
        row |= {"first_loss": losses[0], "last_loss": losses[-1], "peak_gib": peak, "limit_gib": options.limit_gib}
        row |= {"samples_per_s": timed * options.batch * accelerator.num_processes / seconds}
        print(json.dumps(row | {"whole_state_gib": 16 * parameters / 2**30}))
    accelerator.end_training()


def train(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, options: argparse.Namespace
) -> tuple[list[float], float]:
    """Return the loss of every step, the mean over the processes, and the seconds of the timed ones."""
    torch.manual_seed(1 + accelerator.process_index)  # other pictures on every process
    losses, start = [], time.perf_counter()
    for step in range(options.steps):
        if step == SKIPPED:
            start = time.perf_counter()
        pictures, label = waves(options.batch, options.side, accelerator.device)
        loss = nn.functional.cross_entropy(model(pictures).float(), label)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        mean = accelerator.reduce(loss.detach(), "mean")
        assert isinstance(mean, Tensor)
        losses.append(mean.item())
    return losses, time.perf_counter() - start


if __name__ == "__main__":
    main()
