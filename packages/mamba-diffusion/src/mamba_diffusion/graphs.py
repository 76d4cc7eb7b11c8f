"""Record whole training steps as CUDA graphs and replay them: the host then starts one thing a step.

Small networks are bound by the host, which starts some thousand kernels a step. What changes from step to step (the
fields with their times and noise, the learning rate, the decay of the average, the step's number) lies in tensors that
stay where they are. How many sensors, queries and anchors there are is part of a recording: every shape has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .exchange import Exchange

if TYPE_CHECKING:
    from .data import Batch
    from .run import Run

EAGER_STEPS = 3  # before the first recording: moments and buffers come into being

StepShape = tuple[int, int, int, int]  # fields, sensors, queries, anchors


class Recording(NamedTuple):
    """The graphs of a step (of several processes two, with a message between them), and its loss and gradient norm."""

    graphs: list[torch.cuda.CUDAGraph]
    results: tuple[Tensor, Tensor]


def check_device(device: torch.device) -> None:
    """Refuse to record where there is no CUDA.

    Raises:
        ValueError: The device is no CUDA GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"train: --graph must have a CUDA GPU, got {device.type}; leave it out here")


class RecordedStep:
    """A training step without accumulation: the same as the loop's, with next to nothing left to the host.

    A shape is met the first time as it is, which compiles its kernels, and recorded the second time. All recordings
    share their memory: none needs what another left in it.

    Args:
        run: Prepared, on a CUDA GPU, and resumed if it is resumed.
    """

    def __init__(self, run: Run) -> None:
        device = run.accelerator.device
        self.step_on_device = DeviceStep(run)
        self.stream = torch.cuda.Stream(device)
        self.memory = torch.cuda.graph_pool_handle()
        self.recordings: dict[StepShape, Recording] = {}
        self.met: set[StepShape] = set()
        self.eager = 0

    def __call__(self, batch: Batch, lr: float, ema: float) -> tuple[Tensor, Tensor]:
        """Make one optimizer step and let the average follow; return loss and gradient norm, on the device.

        Both are overwritten when the next step is made.
        """
        shape = self.step_on_device.set(batch, lr, ema)
        if shape not in self.recordings and shape in self.met and self.eager >= EAGER_STEPS:
            self.recordings[shape] = self._record()
        if shape in self.recordings:
            graphs, results = self.recordings[shape]
            graphs[0].replay()
            if len(graphs) > 1:
                self.step_on_device.exchange.average()
                graphs[1].replay()
            return results
        self.met.add(shape)
        self.eager += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.step_on_device.make()
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self) -> Recording:
        self.step_on_device.forget_gradients()
        for group in self.step_on_device.run.optimizer.param_groups:
            group["capturable"] = True
        torch.cuda.synchronize()
        step = self.step_on_device
        graphs, results = [], None
        # the message between processes is no part of a recording: they need not record at the same time
        for part in [step.make] if step.exchange.processes == 1 else [step.gradients, step.apply]:
            graphs.append(torch.cuda.CUDAGraph())
            # "thread_local": the loader's thread may page-lock memory meanwhile
            with torch.cuda.graph(graphs[-1], pool=self.memory, stream=self.stream, capture_error_mode="thread_local"):
                results = part()
        assert results is not None
        return Recording(graphs, results)


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
        self.batches: dict[StepShape, Batch] = {}  # tensors of every shape, filled anew
        self.batch: Batch = {}
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr

    def set(self, batch: Batch, lr: float, ema: float) -> StepShape:
        """Take what is new in the step that comes; return its shape."""
        fields, sensors = batch["input_coords"].shape[:2]
        seen = int(batch["anchors"]) if self.run.cfg.model.kind == "ours" else 0  # the others have none
        shape = (fields, sensors, batch["query_coords"].shape[1], seen)
        if shape not in self.batches:
            self.batches[shape] = {name: x.clone() for name, x in batch.items()}
        self.batch = self.batches[shape]
        names = [name for name in batch if name != "anchors"]
        torch._foreach_copy_([self.batch[n] for n in names], [batch[n] for n in names])  # pyright: ignore[reportPrivateImportUsage]
        self.number.fill_(self.run.progress.step)
        self.lr.fill_(lr)
        self.share.fill_(1 - ema)
        return shape

    def make(self) -> tuple[Tensor, Tensor]:
        """Make the step."""
        self.gradients()
        self.exchange.average()
        return self.apply()

    def gradients(self) -> None:
        """Make this process's gradients."""
        from .train import loss_of

        run = self.run
        self.forget_gradients()
        loss = loss_of(run, self.batch)
        run.accelerator.backward(loss)
        self.exchange.gather(loss)

    def apply(self) -> tuple[Tensor, Tensor]:
        """Change the weights by the mean gradient; return loss and gradient norm, the same on every process."""
        run = self.run
        loss = self.exchange.spread()
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
