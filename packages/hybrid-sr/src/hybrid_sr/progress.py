"""Progress for a person who watches (a bar) or for a log (a plain line now and then). Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Show how far one picture is.

    Args:
        label: What the bar or the line is about.
        watched: A bar if true, else lines; None asks whether stderr is a terminal.
        every: Seconds between lines.
        unit: What is counted.
    """

    def __init__(
        self, label: str, *, watched: bool | None = None, every: float = LINE_EVERY, unit: str = "tile"
    ) -> None:
        self.label, self.unit = label, unit
        self.watched = sys.stderr.isatty() if watched is None else watched
        self.every = every
        self._bar = None
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._started = self._told = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` are ready."""
        if self.watched:
            self._update_bar(done, total)
        elif done < total and time.monotonic() - self._told >= self.every:
            self._told = time.monotonic()
            left = (self._told - self._started) / done * (total - done)
            print(f"{self.label}: {done} of {total} {self.unit}s, {left:.0f} s left", file=sys.stderr, flush=True)

    def _update_bar(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:  # the total grows when tiles are halved
            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm(total=total, desc=self.label, unit=self.unit, leave=False, file=sys.stderr)
        self._bar.update(done - self._bar.n)
