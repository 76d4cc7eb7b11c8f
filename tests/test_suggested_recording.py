"""The line that tells the owner of a GPU about recorded steps."""

import importlib
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Settings:
    """What of a run's settings decides: whether its steps are recorded, and something that forbids it."""

    graph: bool = False
    accumulation: bool = False

    def __post_init__(self) -> None:
        if self.graph and self.accumulation:
            raise ValueError("graph must be off with accumulation")


@pytest.mark.parametrize("package", ["hybrid_sr", "mamba_diffusion", "muse_mamba", "vim_compress"])
@pytest.mark.parametrize(
    ("settings", "device", "told"),
    [
        (Settings(), "cuda", True),
        (Settings(), "cpu", False),  # nothing can be recorded there
        (Settings(graph=True), "cuda", False),
        (Settings(accumulation=True), "cuda", False),  # it would be refused
    ],
)
def test_recording_is_suggested_where_it_is_possible(package, settings, device, told, capsys):
    """A run that would be refused with --graph, or has it, is left alone."""
    importlib.import_module(f"{package}.graphs").suggest(settings, torch.device(device))
    assert ("--graph records" in capsys.readouterr().err) is told
