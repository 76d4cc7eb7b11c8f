"""Fixtures for the tests across packages."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def workspace() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def uv():
    """Call uv offline: uv("pip", "install", ..., env={...}) returns its standard output and fails on an error."""

    from uv import find_uv_bin  # not at the top: a bare GPU machine collects this folder without it

    def call(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
        return _run([find_uv_bin(), "--offline", "--quiet", *arguments], cwd, env or {})

    return call


@pytest.fixture(scope="session")
def wheels(uv, tmp_path_factory) -> Path:
    """All five packages as wheels in one folder."""
    dist = tmp_path_factory.mktemp("dist")
    uv("build", "--all-packages", "--wheel", "--out-dir", str(dist))
    return dist
