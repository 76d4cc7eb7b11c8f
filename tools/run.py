"""Run a command inside the workspace's environment, installing first what is missing.

    python3 tools/run.py hybrid-sr upscale --sample astronaut --scale 4
    python3 tools/run.py pytest -n auto

Needs Python 3.9 or newer with pip and nothing else: uv is taken from the PATH, or put into `.uv/` of this folder (no
system package is touched), and `uv run` then creates `.venv` with all five packages and their tools.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ROOT / ".uv"


def find_uv() -> str:
    """Return a uv to call; install a private one with pip when the machine has none."""
    private = PRIVATE / "bin" / ("uv.exe" if os.name == "nt" else "uv")
    if on_path := shutil.which("uv"):
        return on_path
    if not private.exists():
        # --target leaves the system's Python alone, also where the distribution forbids plain `pip install`
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(PRIVATE), "uv>=0.9"]
        subprocess.run(install, check=True)
    return str(private)


def main() -> int:
    """Forward the arguments to `uv run` in the caller's folder; the exit code is the command's."""
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        return subprocess.run([find_uv(), "run", "--project", str(ROOT), *sys.argv[1:]], check=False).returncode
    except subprocess.CalledProcessError as error:
        print(f"run.py: pip could not install uv (exit code {error.returncode}); install uv by hand and try again")
        return 2


if __name__ == "__main__":
    sys.exit(main())
