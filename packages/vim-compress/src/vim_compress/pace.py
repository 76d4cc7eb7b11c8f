"""How fast a run is and what a person sees of it: a bar when someone is watching, plain lines when not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Pace:
    """Clock and screen of one process; only the main one shows anything.

    Args:
        step: Step the session starts at.
        steps: Length of the run.
        shown: Whether this process may write to the screen.
    """

    def __init__(self, step: int, steps: int, *, shown: bool) -> None:
        self.steps, self.shown = steps, shown
        self.seconds = 0.0  # per step, of the newest interval
        self._step = step
        self._since = time.perf_counter()
        watched = shown and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True) if watched else None

    def lap(self, step: int) -> float:
        """Return the steps per second since the last lap, pauses left out, and start the next one."""
        now = time.perf_counter()
        self.seconds = (now - self._since) / max(1, step - self._step)
        self._since, self._step = now, step
        return 1 / max(self.seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the rate."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def advance(self) -> None:
        """Move the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def row(self, step: int, values: dict[str, float]) -> None:
        """Show the newest row: beside the bar, or as a line with the time that is left."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            left = time.strftime("%H:%M:%S", time.gmtime((self.steps - step) * self.seconds))
            self.say(f"step {step}/{self.steps}  {text}  left {left}")

    def say(self, text: str) -> None:
        """Show a line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
