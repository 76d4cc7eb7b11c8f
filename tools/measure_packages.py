"""Install each package alone from its wheel and measure it: sizes, import time, `--help`, one verb that does real work.

    python tools/measure_packages.py [--package NAME ...] [--out docs/results/packages.json]

Everything comes from the wheels just built, the lock file and uv's cache (`uv sync` has filled both), nothing from a
network. Times are CPU seconds of a new process and its children, the least of three (one run of the verb): where other
work goes on beside, they say more than the clock. Rows of packages that are not named stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import docs_given

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 3
# One command each that does real work without extras and without shipped weights, in a folder that `prepare` filled.
STEP = docs_given.STEP
VERBS = {
    "ssm-kernels": "ssm-kernels selftest --device cpu --dtype float32",
    "hybrid-sr": "hybrid-sr upscale picture.png --scale 4 --overwrite",
    "muse-mamba": f"muse-mamba train-tokenizer tiny {STEP} --size 16 --discriminator_layers 2 --perceptual none "
    "--data given/photos --out run",
    "mamba-diffusion": f"mamba-diffusion train tiny-v2 {STEP} --data given/photos --out run",
    "vim-compress": f"vim-compress train tiny {STEP} --data given/classes --out run",
}


def call(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        RuntimeError: It fails; the message holds what it said.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "TRITON"))}
    done = subprocess.run(command, cwd=cwd, env=clean | (env or {}), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def uv(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Call uv offline."""
    from uv import find_uv_bin

    return call(find_uv_bin(), "--offline", "--quiet", *arguments, env=env)


def install(package: str, wheels: Path, venv: Path) -> Path:
    """Make an environment with one package, ssm-kernels and their declared needs; return the package's wheel."""
    uv("venv", "--python", sys.executable, str(venv))
    target = {"VIRTUAL_ENV": str(venv)}
    uv("sync", "--active", "--frozen", "--no-dev", "--no-install-workspace", "--no-compile-bytecode",
       "--package", package, env=target)  # fmt: skip
    files = {name: next(wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in {package, "ssm-kernels"}}
    uv("pip", "install", "--no-deps", *map(str, files.values()), env=target)
    uv("pip", "check", env=target)
    return files[package]


def prepare(folder: Path) -> None:
    """Write the pictures that VERBS work on."""
    docs_given.picture(0).save(folder / "picture.png")
    docs_given.photos(folder / "given" / "photos")
    for number in range(2):
        docs_given.photos(folder / "given" / "classes" / f"class{number}")


def measure(package: str, wheels: Path, work: Path) -> dict[str, Any]:
    """Return the row of one package."""
    venv = work / package
    wheel = install(package, wheels, venv)
    site = next((venv / "lib").glob("python*/site-packages"))
    module = package.replace("-", "_")
    folder = work / f"{package}-pictures"
    folder.mkdir()
    prepare(folder)
    verb = VERBS[package].split()
    program = str(venv / "bin" / verb[0])
    python = str(venv / "bin" / "python")
    return {
        "wheel_bytes": wheel.stat().st_size,
        "installed_bytes": total(site / module),
        "environment_bytes": total(site),
        "distributions": len(list(site.glob("*.dist-info"))),
        "import_s": quickest([python, "-c", f"import {module}"], folder),
        "help_s": quickest([program, "--help"], folder),
        "verb_s": quickest([program, *verb[1:]], folder, repeats=1),
        "verb": " ".join(verb[:2]),
    }


def total(folder: Path) -> int:
    """Return the bytes of all files below a folder, compiled Python files left out."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc")


def quickest(command: list[str], cwd: Path, repeats: int = REPEATS) -> float:
    """Return the least CPU seconds of several runs in processes of their own."""
    seconds = []
    for _ in range(repeats):
        before = os.times()
        call(*command, cwd=cwd, env={"OMP_NUM_THREADS": "1"})
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(spent)
    return round(min(seconds), 3)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", nargs="+", choices=list(VERBS), default=list(VERBS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "packages.json")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {"packages": {}}
    with tempfile.TemporaryDirectory(prefix="measure-packages-") as work:
        wheels = Path(work) / "wheels"
        uv("build", "--all-packages", "--wheel", "--out-dir", str(wheels))
        for package in options.package:
            found["packages"][package] = measure(package, wheels, Path(work))
            print(json.dumps({package: found["packages"][package]}), flush=True)
    git = call("git", "rev-parse", "--short", "HEAD").strip()
    machine = f"{platform.system()}, {os.cpu_count()} cores that others used too"
    found["environment"] = f"Python {platform.python_version()}, {machine}, commit {git}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
