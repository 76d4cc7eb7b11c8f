"""Run the benchmarks and the GPU tests on a machine with a bare python3, torch, triton and pytest; installs nothing.

    python3 tools/gpu_check.py --out DIR [--quick] [--skip-benchmarks] [--skip-slow] [--sanitize] [-k EXPRESSION]

The packages are taken from this checkout through PYTHONPATH. DIR receives `gpu-check.json` (the machine, and how many
tests passed), the logs of the tests, and `bench/` with the benchmarks' results. With --sanitize every operator runs at
small sizes under compute-sanitizer's memcheck. The exit code is 0 only if all that ran was right.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
# the packages whose own dependencies may be missing on a bare machine, and the module that tells
TRAINS = ("PIL", "safetensors", "huggingface_hub", "accelerate", "jsonargparse", "docstring_parser", "psutil")
NEEDS = {
    "hybrid-sr": (*TRAINS, "cv2"),
    "muse-mamba": (*TRAINS, "transformers", "diffusers"),
    "mamba-diffusion": (*TRAINS, "scipy"),
    "vim-compress": (*TRAINS, "timm"),
}
# lines of pytest -v that say only that a test begins or passed
QUIET = re.compile(r"\bPASSED\b|^packages/\S+::.* $|^tests/\S+::.* $")


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


def test_files() -> list[str]:
    """Return the test files that this machine can collect; say which are left out."""
    folders = [ROOT / "tests"]
    for package in sorted((ROOT / "packages").iterdir()):
        missing = [name for name in NEEDS.get(package.name, ()) if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{package.name}: its tests are left out, this machine lacks {', '.join(missing)}", flush=True)
        else:
            folders.append(package / "tests")
    kept = []
    for file in sorted(file for folder in folders for file in folder.glob("test_*.py")):
        if missing := lacking(file):
            print(f"{file.relative_to(ROOT)}: left out, this machine lacks {', '.join(missing)}", flush=True)
        else:
            kept.append(str(file))
    return kept


def run_tests(
    out: Path, name: str, marks: str, expression: str | None, jobs: int, limit_s: float | None
) -> dict[str, int]:
    """Run the tests with these marks, `jobs` at a time; return how many there were and how many failed."""
    # pytest-benchmark, where it is installed, warns under pytest-xdist, and warnings are errors here; a line for every
    # test (-v) tells which failed even if this process is killed before the summary
    command = [sys.executable, "-m", "pytest", "-v", "-m", marks, "--slow", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark", f"--junitxml={out / name}.xml"]
    command += ["-n", str(jobs)] if jobs > 1 and importlib.util.find_spec("xdist") else []
    command += ["-k", expression] if expression else []
    follow([*command, *test_files()], out / f"{name}.log", limit_s)
    suite = ElementTree.parse(out / f"{name}.xml").getroot().find("testsuite")
    assert suite is not None
    return {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}


def follow(command: list[str], log: Path, limit_s: float | None = None) -> int:
    """Run a command, its output in a file and, but for tests that begin or pass, on the screen; return its exit code.

    After `limit_s` seconds it is interrupted, as by Ctrl-C: pytest then still tells of the failures so far.
    """
    started: list[subprocess.Popen[str]] = []

    def interrupt(*_: object) -> None:
        for process in started:
            process.send_signal(signal.SIGINT)

    # Ctrl-C is passed on once. Set before the command begins, which would inherit a SIGINT that is ignored here
    before = signal.signal(signal.SIGINT, interrupt)
    timer = threading.Timer(limit_s or 0, interrupt)
    try:
        with log.open("w") as file, _start(command) as process:
            started.append(process)
            assert process.stdout is not None
            if limit_s is not None:
                timer.start()
            for line in process.stdout:
                file.write(line)
                file.flush()
                if not QUIET.search(line):
                    print(line, end="", flush=True)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    return process.returncode


def _start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, its output in one pipe."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_sanitizer(out: Path) -> int | None:
    """Run every operator under memcheck; return how many errors it found, None without the tool or a summary."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("gpu_check: compute-sanitizer is not here; it comes with the CUDA toolkit")
        return None
    command = [tool, "--tool", "memcheck", sys.executable, "-m", "ssm_kernels", "selftest", "--device", "cuda"]
    follow([*command, "--dtype", "bfloat16"], out / "memcheck.log")
    found = re.findall(r"ERROR SUMMARY: (\d+) error", (out / "memcheck.log").read_text())
    return int(found[-1]) if found else None


def run_benchmarks(out: Path, quick: bool) -> int:
    """Run `ssm-kernels bench`; return 1 if a kernel was wrong or the command failed."""
    command = [sys.executable, "-m", "ssm_kernels", "bench", "--device", "cuda", "--overwrite"]
    command += ["--out", str(out / "bench")]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, env=environment(), check=False)
    return int(done.returncode != 0)


def main() -> int:
    """Describe the machine, benchmark, test; 0 if all is well, 1 if something failed, 2 if this machine cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and JSON, made if missing")
    parser.add_argument("--quick", action="store_true", help="a few benchmark shapes only")
    parser.add_argument("--skip-benchmarks", action="store_true")
    parser.add_argument("--skip-slow", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("--sanitize", action="store_true", help="also run every operator under compute-sanitizer")
    parser.add_argument("-k", dest="expression", help="only the tests that match, as pytest -k")
    parser.add_argument("--limit", type=float, metavar="S", help="interrupt each run of tests after S seconds")
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
    report: dict[str, Any] = {"environment": describe()}
    print(json.dumps(report["environment"]), flush=True)
    failed = 0 if args.skip_benchmarks else run_benchmarks(args.out, args.quick)  # first, with the GPU to themselves
    report["tests"] = run_tests(args.out, "gpu-tests", "gpu and not slow", args.expression, args.jobs, args.limit)
    if not args.skip_slow:  # one by one: some need half of the memory
        report["slow tests"] = run_tests(args.out, "gpu-tests-slow", "gpu and slow", args.expression, 1, args.limit)
    if args.sanitize:
        report["memcheck errors"] = run_sanitizer(args.out)
    (args.out / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"gpu_check: {json.dumps(report)}")
    red = [kind for kind in ("tests", "slow tests") if kind in report and not passed(report[kind])]
    return int(bool(failed or red or report.get("memcheck errors", 0) != 0))


def passed(counts: dict[str, int]) -> bool:
    """Whether some test ran and none failed."""
    return counts["tests"] > 0 and counts["failures"] + counts["errors"] == 0


if __name__ == "__main__":
    sys.exit(main())
