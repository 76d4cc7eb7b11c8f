"""Run the benchmarks and the GPU tests on a machine with a bare python3, torch, triton and pytest; installs nothing.

    python3 tools/gpu_check.py --out DIR [--quick] [--skip-benchmarks] [-k EXPRESSION] [--jobs N]

The packages are taken from this checkout through PYTHONPATH. DIR receives `environment.json`, `gpu-tests.log`,
`gpu-tests.xml` and `bench/` with the benchmarks' results. The exit code is 0 only if every test passed and every
benchmark that ran found its operator accurate.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# the packages whose own dependencies may be missing on a bare machine, and the module that tells
NEEDS = {"hybrid-sr": ("PIL", "cv2", "safetensors", "huggingface_hub", "accelerate", "jsonargparse")}


def environment() -> dict[str, str]:
    """Return PYTHONPATH and friends for a child process that uses this checkout."""
    sources = [str(path) for path in sorted((ROOT / "packages").glob("*/src"))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])}


def describe() -> dict[str, str]:
    """Return what the numbers depend on: GPU, driver, python, torch, triton, commit."""
    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    return {"gpu": gpu, "driver": driver, **versions, "git": "unknown" if git.returncode else git.stdout.strip()}


def lacking(file: Path) -> list[str]:
    """Return the modules that a test file imports when it is collected and that this machine does not have."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    ours = {path.name for path in (ROOT / "packages").glob("*/src/*")}
    return sorted(name for name in names - ours if importlib.util.find_spec(name) is None)


def run_tests(out: Path, expression: str | None, jobs: int) -> int:
    """Run every test marked gpu whose package's own dependencies are here; return pytest's exit code."""
    folders = [ROOT / "tests"]
    for package in sorted((ROOT / "packages").iterdir()):
        missing = [name for name in NEEDS.get(package.name, ()) if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{package.name}: its tests are left out, this machine lacks {', '.join(missing)}", flush=True)
        else:
            folders.append(package / "tests")
    # pytest-benchmark, where it is installed, warns under pytest-xdist, and warnings are errors here
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
    ]
    command += ["-n", str(jobs)] if jobs > 1 and importlib.util.find_spec("xdist") else []
    command += [f"--junitxml={out / 'gpu-tests.xml'}", *(["-k", expression] if expression else [])]
    for file in sorted(file for folder in folders for file in folder.glob("test_*.py")):
        if missing := lacking(file):
            print(f"{file.relative_to(ROOT)}: left out, this machine lacks {', '.join(missing)}", flush=True)
            command.append(f"--ignore={file}")
    command += [str(folder) for folder in folders if folder.exists()]
    with (
        subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        (out / "gpu-tests.log").open("w") as log,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            print(line, end="", flush=True)
    return process.returncode


def run_benchmarks(out: Path, quick: bool) -> int:
    """Run `ssm-kernels bench`; return 1 if a kernel was wrong or the command failed."""
    command = [
        sys.executable,
        "-m",
        "ssm_kernels",
        "bench",
        "--device",
        "cuda",
        "--overwrite",
        "--out",
        str(out / "bench"),
    ]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, env=environment(), check=False)
    return int(done.returncode != 0)


def main() -> int:
    """Describe the machine, benchmark, test; 0 if all is well, 1 if something failed, 2 if this machine cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and JSON, made if missing")
    parser.add_argument("--quick", action="store_true", help="a few benchmark shapes only")
    parser.add_argument("--skip-benchmarks", action="store_true")
    parser.add_argument("-k", dest="expression", help="only the tests that match, as pytest -k")
    parser.add_argument("--jobs", type=int, default=4, help="test processes that share the GPU, with pytest-xdist")
    args = parser.parse_args()
    missing = [name for name in ("torch", "triton", "pytest") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"gpu_check: needs {', '.join(missing)} in {sys.executable}; it installs nothing by itself")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    import torch

    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device here; run it on a machine with a GPU")
        return 2
    about = describe()
    (args.out / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about), flush=True)
    failed = 0 if args.skip_benchmarks else run_benchmarks(args.out, args.quick)  # first, with the GPU to themselves
    tests = run_tests(args.out, args.expression, args.jobs)
    print(f"gpu_check: tests exit code {tests}, {failed} benchmarks failed")
    return 1 if tests or failed else 0


if __name__ == "__main__":
    sys.exit(main())
