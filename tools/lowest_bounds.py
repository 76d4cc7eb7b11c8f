"""Run tests with the oldest versions of the direct dependencies that the packages allow.

    python tools/lowest_bounds.py [--package hybrid-sr ...] [--resolve-only] [-- PYTEST ARGUMENTS]

For each package an environment of its own: its extras, the test tools, every direct dependency at its lower bound, the
rest newest (`uv pip install --resolution lowest-direct`), then its tests. It downloads old versions, torch among them
(some gigabytes), and takes half an hour; CI does not run it. `--resolve-only` looks whether the bounds can be met and
prints them, which downloads no package. The exit code is 1 if a package fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ssm-kernels", "hybrid-sr", "muse-mamba", "mamba-diffusion", "vim-compress")
NOT_HERE = ("mamba-ssm",)  # extras that need a compiler
TOOLS = ("pytest>=8.3", "hypothesis>=6.110")


def asked(package: str) -> list[str]:
    """Return what is installed for a package: itself and ssm-kernels with their extras, and the test tools."""
    wanted = []
    for name in dict.fromkeys(("ssm-kernels", package)):
        folder = ROOT / "packages" / name
        extras = tomllib.loads((folder / "pyproject.toml").read_text())["project"].get("optional-dependencies", {})
        chosen = ",".join(extra for extra in extras if extra not in NOT_HERE)
        wanted.append(f"{name}[{chosen}] @ file://{folder}" if chosen else f"{name} @ file://{folder}")
    return wanted


def uv(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Call uv; what it says is shown."""
    from uv import find_uv_bin

    return subprocess.run([find_uv_bin(), *arguments], env=os.environ | (env or {}), text=True, check=False)


def run(package: str, work: Path, tests: list[str], *, resolve_only: bool) -> bool:
    """Resolve, and unless told otherwise install and test one package; return whether all went well."""
    request = work / f"{package}.txt"
    request.write_text("\n".join([*asked(package), *TOOLS]) + "\n")
    lowest = ["--resolution", "lowest-direct"]
    if resolve_only:
        return uv("pip", "compile", *lowest, "--no-annotate", "--no-header", "--quiet", str(request)).returncode == 0
    venv = {"VIRTUAL_ENV": str(work / package)}
    steps = (["venv", "--python", sys.executable, str(work / package)], ["pip", "install", *lowest, "-r", str(request)])
    if any(uv(*step, env=venv).returncode != 0 for step in steps):
        return False
    command = [str(work / package / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([*command, f"packages/{package}/tests", *tests], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Run the packages one by one; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--resolve-only", action="store_true")
    parser.add_argument("tests", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lowest-bounds-") as work:
        failed = [
            package
            for package in options.package
            if not run(package, Path(work), options.tests, resolve_only=options.resolve_only)
        ]
    print(f"lowest bounds: {', '.join(failed)} failed" if failed else "lowest bounds: all well")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
