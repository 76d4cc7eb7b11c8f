"""What ends a run before its last step: numbers that are not finite, signals, and the clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .recipes import TrainConfig

LEAST_FP16_SCALE = 1.0  # below this factor of the loss, gradients overflow by themselves
MOST_NAMES = 8  # fields named in the message


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the weights are those before that step."""


class FiniteGuard:
    """Keeps the optimizer from applying a step whose loss or gradient is not finite, without waiting for the device.

    The verdict stays on the device as the flag `found_inf` that PyTorch's fused optimizers obey (the mechanism of
    its gradient scaler): from the first bad step on, no step changes a weight. `refuse` reads the flag; the trainer
    does so at every log interval and before every save. Under fp16 the scaler owns that flag and skips overflowing
    steps by design; there only the loss counts, and a scale that has fallen below 1.

    Args:
        accelerator: For its device and gradient scaler.
        optimizer: A fused AdamW.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.found = torch.zeros((), device=accelerator.device)
        self.first = torch.full((), -1, dtype=torch.int64, device=accelerator.device)
        if accelerator.scaler is None:
            optimizer.found_inf = self.found  # pyright: ignore[reportAttributeAccessIssue]

    def check(self, step: int | Tensor, loss: Tensor, norm: Tensor) -> None:
        """Take note of the loss and gradient norm of a step, both the same on every process, before it is applied."""
        suspect = loss if self.accelerator.scaler is not None else loss + norm
        bad = ~torch.isfinite(suspect.detach())
        self.first.copy_(torch.where((self.first < 0) & bad, step, self.first))
        self.found.copy_((self.first >= 0).float())

    def refuse(self, cfg: TrainConfig, out: Path, names: Callable[[Iterable[int]], list[str]]) -> None:
        """Raise if a step was not finite; waits for the device.

        Args:
            cfg: The run, for the fields of a step.
            out: Its folder, for the last good checkpoint.
            names: Tells the fields by number.

        Raises:
            NonFiniteError: Names the step, its fields and the last good checkpoint.
        """
        from .checkpoint import latest

        step = int(self.first)
        scaler = self.accelerator.scaler
        if step < 0 and (scaler is None or scaler.get_scale() >= LEAST_FP16_SCALE):
            return
        good = latest(out, verbose=False)
        advice = f"the last good checkpoint is {good}" if good else "no checkpoint had been written yet"
        if step < 0:
            raise NonFiniteError(f"fp16 gradients overflow at every scale; {advice}; try --precision bf16")
        first = step * cfg.global_batch
        numbers = range(first, first + cfg.global_batch)
        raise NonFiniteError(
            f"loss or gradient not finite at step {step}, fields {numbers.start} to {numbers.stop - 1} "
            f"({', '.join(names(numbers)[:MOST_NAMES])}); the step was not applied; {advice}; "
            "try a lower --lr or --clip"
        )


class Stop:
    """Notes SIGTERM, SIGINT and the end of the time allowed; the loop asks between steps. A second signal kills.

    Args:
        minutes: From now; None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.reason: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        """Take over the two signals (main thread only; elsewhere they keep their meaning)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def wanted(self, accelerator: Accelerator, *, agree: bool) -> str | None:
        """Return why the run shall end now, or None.

        Args:
            accelerator: For the processes to agree.
            agree: Whether several processes may exchange their view now, which waits for the device. One process
                never needs to.
        """
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "max_minutes"
        if accelerator.num_processes == 1:
            return self.reason
        if not agree:
            return None
        votes = torch.tensor(float(self.reason is not None), device=accelerator.device)
        agreed = accelerator.reduce(votes, "sum")
        assert isinstance(agreed, Tensor)
        return (self.reason or "another process") if float(agreed) else None
