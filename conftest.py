"""Test settings for the whole workspace: Triton's interpreter without a GPU, and which markers run where."""

import glob
import os
import shutil

HAS_GPU = bool(glob.glob("/dev/nvidia[0-9]*"))
HAS_BROWSER = any(map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")))
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, so before any test module
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers as cores: more threads only get in each other's way

import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this machine cannot run: it shows in the summary line as deselected, not as skipped."""
    kept, dropped = [], []
    for item in items:
        slow = item.get_closest_marker("slow") is not None and not config.getoption("--slow")
        gpu = item.get_closest_marker("gpu") is not None and not HAS_GPU
        browser = item.get_closest_marker("browser") is not None and not HAS_BROWSER
        (dropped if slow or gpu or browser else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
