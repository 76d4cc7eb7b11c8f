"""Record a whole training step once as a CUDA graph and replay it: the host then starts one thing a step.

Small networks are bound by the host, which starts some thousand kernels a step. What changes from step to step (the
pictures, the learning rate, the decay of the average, the step's number, masks) lies in tensors that stay where they
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .exchange import Exchange

if TYPE_CHECKING:
    from .data import Batch
    from .run import Run

EAGER_STEPS = 3  # before the recording: kernels are compiled, moments and buffers come into being


def check_device(device: torch.device) -> None:
    """Refuse to record where there is no CUDA.

    Raises:
        ValueError: The device is no CUDA GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"train: --graph must have a CUDA GPU, got {device.type}; leave it out here")


class RecordedStep:
    """A training step without accumulation: the same as the loop's, with next to nothing left to the host.

    Args:
        run: Prepared, on a CUDA GPU, and resumed if it is resumed.
    """

    def __init__(self, run: Run) -> None:
        device = run.accelerator.device
        self.step_on_device = DeviceStep(run)
        self.stream = torch.cuda.Stream(device)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.results: tuple[Tensor, Tensor] | None = None
        self.eager = 0

    def __call__(self, batch: Batch, lr: float, ema: float) -> tuple[Tensor, Tensor]:
        """Make one optimizer step and let the average follow; return loss and gradient norm, on the device."""
        self.step_on_device.set(batch, lr, ema)
        if not self.graphs and self.eager == EAGER_STEPS:
            self._record()
        if self.results is not None:
            self.graphs[0].replay()
            if len(self.graphs) > 1:
                self.step_on_device.exchange.average()
                self.graphs[1].replay()
            return self.results
        self.eager += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.step_on_device.make()
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self) -> None:
        self.step_on_device.forget_gradients()
        for group in self.step_on_device.run.optimizer.param_groups:
            group["capturable"] = True
        torch.cuda.synchronize()
        step = self.step_on_device
        # the message between processes is no part of a recording: they need not record at the same time
        for part in [step.make] if step.exchange.processes == 1 else [step.gradients, step.apply]:
            graph = torch.cuda.CUDAGraph()
            # "thread_local": the loader's thread may page-lock memory meanwhile
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.results = part()
            self.graphs.append(graph)


class DeviceStep:
    """A training step that reads everything from tensors of its own, so that it can be recorded. Any device.

    Args:
        run: Prepared; its optimizer's learning rate becomes a tensor.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        device = run.accelerator.device
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.lr = torch.zeros((), device=device)
        self.share = torch.zeros((), device=device)  # of the new weights in the average
        self.exchange = Exchange(run.network.parameters(), run.accelerator.num_processes)
        self.image: Tensor | None = None
        self.target: Tensor | None = None
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr

    def set(self, batch: Batch, lr: float, ema: float) -> None:
        """Take what is new in the step that comes."""
        if self.image is None or self.target is None:
            self.image, self.target = batch["image"].clone(), batch["target"].clone()
        self.image.copy_(batch["image"])
        self.target.copy_(batch["target"])
        self.number.fill_(self.run.progress.step)
        self.lr.fill_(lr)
        self.share.fill_(1 - ema)

    def make(self) -> tuple[Tensor, Tensor]:
        """Make the step."""
        self.gradients()
        self.exchange.average()
        return self.apply()

    def gradients(self) -> None:
        """Make this process's gradients."""
        from .train import objective

        run = self.run
        self.forget_gradients()
        loss = objective(run, {"image": cast(Tensor, self.image), "target": cast(Tensor, self.target)})
        run.accelerator.backward(loss)
        self.exchange.gather(loss)

    def apply(self) -> tuple[Tensor, Tensor]:
        """Change the weights by the mean gradient; return loss and gradient norm, the same on every process."""
        run = self.run
        loss = self.exchange.spread()
        run.pruner.gradients()
        norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.cfg.clip or torch.inf)
        run.guard.check(self.number, loss, norm)
        run.optimizer.step()
        change = torch._foreach_sub(run.followed, run.averaged)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(change, self.share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(run.averaged, change)  # pyright: ignore[reportPrivateImportUsage]
        return loss, norm

    def forget_gradients(self) -> None:
        """Let the backward pass set gradients instead of adding to them."""
        for parameter in self.run.network.parameters():
            parameter.grad = None
