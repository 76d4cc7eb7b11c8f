"""Run tests with the oldest versions of the direct dependencies that the packages allow; write a report.

    python tools/lowest_bounds.py [--package hybrid-sr ...] [--resolve-only] [--work DIR]
                                  [--out docs/results/lowest-bounds.json] [-- PYTEST ARGUMENTS]

For each package an environment of its own: its extras, the test tools, every direct dependency at its lower bound, the
rest newest (`uv pip install --resolution lowest-direct`), then its tests. It downloads old versions, torch among them
(some gigabytes), and takes half an hour; CI does not run it. `--resolve-only` looks whether the bounds can be met and
prints them, which downloads no package and writes no report. Packages that are not run keep their part of the report.
The exit code is 1 if a package fails. `python tools/figures.py` puts the report into docs/packages.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ssm-kernels", "hybrid-sr", "muse-mamba", "mamba-diffusion", "vim-compress")
NOT_HERE = ("mamba-ssm",)  # extras that need a compiler
TOOLS = ("pytest>=8.3", "hypothesis>=6.110", "safetensors>=0.5", "playwright>=1.50", "scikit-image>=0.25")
PEERS = {"ssm-kernels": ("transformers>=5",)}  # whose models the tests run
COUNTED = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected)")


def project(package: str) -> dict[str, Any]:
    """Return the [project] table of a package."""
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


def asked(package: str) -> list[str]:
    """Return what is installed for a package: itself and ssm-kernels with their extras, and the test tools."""
    wanted = []
    for name in dict.fromkeys(("ssm-kernels", package)):
        folder, extras = ROOT / "packages" / name, project(name).get("optional-dependencies", {})
        chosen = ",".join(extra for extra in extras if extra not in NOT_HERE)
        wanted.append(f"{name}[{chosen}] @ file://{folder}" if chosen else f"{name} @ file://{folder}")
    return wanted


def bounded(package: str) -> list[str]:
    """Return the names of the dependencies that a package bounds from below, its extras' among them."""
    table = project(package)
    extras = (part for extra, part in table.get("optional-dependencies", {}).items() if extra not in NOT_HERE)
    lines = [*table["dependencies"], *(line for part in extras for line in part)]
    return sorted({re.split(r"[\[<>=;]", line)[0].strip().lower() for line in lines if ">=" in line} - {"ssm-kernels"})


def uv(*arguments: str, env: dict[str, str] | None = None, show: bool = True) -> subprocess.CompletedProcess[str]:
    """Call uv; what it says is shown, or returned."""
    from uv import find_uv_bin

    return subprocess.run(
        [find_uv_bin(), *arguments], env=os.environ | (env or {}), text=True, check=False, capture_output=not show
    )


def resolve(package: str, request: Path) -> bool:
    """Say which versions the lower bounds lead to; return whether there is an answer."""
    print(f"{package}:", flush=True)
    lowest = ("--resolution", "lowest-direct", "--no-annotate", "--no-header", "--quiet")
    return uv("pip", "compile", *lowest, str(request)).returncode == 0


def run(package: str, request: Path, work: Path, tests: list[str]) -> dict[str, Any]:
    """Install and test one package; return its part of the report."""
    venv = {"VIRTUAL_ENV": str(work / package)}
    lowest = ("--resolution", "lowest-direct", "--no-compile-bytecode")
    python = work / package / "bin" / "python"
    steps = [["pip", "install", *lowest, "-r", str(request)]]
    if not python.exists():
        steps.insert(0, ["venv", "--python", sys.executable, str(work / package)])
    if any(uv(*step, env=venv).returncode != 0 for step in steps):
        return {"installed": False}
    listed = json.loads(uv("pip", "list", "--format", "json", "--quiet", env=venv, show=False).stdout)
    versions = {entry["name"].lower(): entry["version"] for entry in listed}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"packages/{package}/tests", *tests]
    start, last = time.monotonic(), ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if COUNTED.search(line) else last
    counts = {what.rstrip("s"): int(number) for number, what in COUNTED.findall(last)}
    return {
        "installed": True,
        "versions": {name: versions[name] for name in bounded(package)},
        "command": " ".join(["pytest", f"packages/{package}/tests", *tests]),
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - start),
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0),
        "skipped": counts.get("skipped", 0),
    }


def report(parts: dict[str, dict[str, Any]], out: Path) -> None:
    """Write the parts into the report, beside those of packages that were not run."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    about = f"Python {platform.python_version()}, {platform.system()}, CPU"
    for part in parts.values():
        part["environment"] = f"{about}, commit {git.stdout.strip() or 'unknown'}, {time.strftime('%Y-%m-%d')}"
    known = json.loads(out.read_text())["packages"] if out.is_file() else {}
    known |= parts
    found = {"packages": {name: known[name] for name in PACKAGES if name in known}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    """Run the packages one by one; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--resolve-only", action="store_true")
    parser.add_argument("--work", type=Path, help="where the environments stay; a temporary folder where not given")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "lowest-bounds.json")
    parser.add_argument("tests", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="lowest-bounds-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for package in options.package:
            request = work / f"{package}.txt"
            request.write_text("\n".join([*asked(package), *TOOLS, *PEERS.get(package, ())]) + "\n")
            if options.resolve_only:
                well = resolve(package, request)
            else:
                part = run(package, request, work, options.tests)
                report({package: part}, options.out)
                well = part["installed"] and part["exit_code"] == 0
            failed += [] if well else [package]
    print(f"lowest bounds: {', '.join(failed)} failed" if failed else "lowest bounds: all well")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
