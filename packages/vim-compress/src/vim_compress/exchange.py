"""Average the gradients of a recorded step over the processes, in one message.

DistributedDataParallel exchanges gradients from hooks that the host runs during the backward pass. A replayed pass has
no host, and the networks for which recording pays have few weights: one message after the pass takes little.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


class Exchange:
    """The gradients and the loss of a step, side by side in one float32 tensor that stays where it is.

    `gather` and `spread` may be recorded; `average`, between them, is the message itself. With one process all three
    leave everything as it is.

    Args:
        parameters: Of the network, not sharded, the same on every process.
        processes: How many take part.

    Source: Li et al., PyTorch Distributed (VLDB 2020), section 3.2.3, with a single bucket.
    """

    def __init__(self, parameters: Iterable[Parameter], processes: int) -> None:
        self.processes = processes
        self.parameters = [p for p in parameters if p.requires_grad] if processes > 1 else []
        numbers = sum(p.numel() for p in self.parameters) + 1
        self.flat = torch.zeros(numbers, device=self.parameters[0].device if self.parameters else None)
        self.loss: Tensor = self.flat[-1]

    def gather(self, loss: Tensor) -> None:
        """Take this process's gradients and loss (a scalar); a parameter without a gradient counts as zero."""
        if self.processes == 1:
            self.loss = loss.detach()
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch.cat([*(g.flatten() for g in gradients), loss.detach().reshape(1)], out=self.flat)

    def average(self) -> None:
        """Replace what every process gathered by the sum over the processes."""
        if self.processes > 1:
            distributed.all_reduce(self.flat)

    def spread(self) -> Tensor:
        """Set the gradients to their mean over the processes; return the mean loss, a scalar.

        Both are overwritten by the next `gather`.
        """
        if self.processes > 1:
            self.flat.div_(self.processes)
            parts = self.flat[:-1].split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                if parameter.grad is not None:
                    parameter.grad = part.view_as(parameter)
        return self.loss
