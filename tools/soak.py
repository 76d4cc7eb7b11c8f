"""Bad days on purpose: kill, fill the disk, spoil checkpoints, feed hostile files; write a report.

    python tools/soak.py [--out docs/results/soak.json] [--kills 50] [--spoils 5] [--rows 10000000] [--files 1000000]
                         [--only kill sigterm ...] [--seed 0]

Every trainer runs its `tiny` preset on a CPU, in processes forked from this one, which has imported everything: so a
kill costs a second and not ten. Full disks and read-only folders are real ones, small file systems in memory, which
takes root; without it these rows say that they were not run. The exit code is 1 if a row did not pass.

A row: what happened, to what, how often, how often it ended as it should, what was seen, and at which commit. What
"should" means stands in tools/soak_cases.py beside each case. `python tools/figures.py` puts them into docs/soak.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process that forks must have one thread
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))
import docs_given
from soak_cases import CASES, Bench

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the cases, one after another; 1 if a row did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "soak.json")
    parser.add_argument("--kills", type=int, default=50, help="for each trainer")
    parser.add_argument("--spoils", type=int, default=5, help="damaged checkpoints for each trainer")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large CSV file")
    parser.add_argument("--files", type=int, default=1_000_000, help="of the large folder")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    made = {"commit": git.stdout.strip() or "unknown", "date": time.strftime("%Y-%m-%d")}
    rows = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.chdir(folder)
        docs_given.prepare("docs/soak", {})
        bench = Bench(Path(folder), random.Random(options.seed), options)
        for case in options.only:
            for row in CASES[case](bench):
                rows.append(row | made)
                print(json.dumps(row), flush=True)
        os.chdir(ROOT)
    kept = [row for row in previous(options.out) if row["kind"] not in options.only]
    order = list(CASES)
    rows = sorted([*kept, *rows], key=lambda row: order.index(str(row["kind"])))
    about = f"Python {platform.python_version()}, {platform.system()}, CPU"
    report = {"rows": rows, "environment": about}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    bad = [row for row in rows if row["passed"] != row["times"]]
    print(f"soak: {len(rows) - len(bad)} of {len(rows)} rows as they should be")
    return int(bool(bad))


def previous(file: Path) -> list[dict[str, object]]:
    """Return the rows of an earlier report, which stay where their kind is not run again."""
    return json.loads(file.read_text())["rows"] if file.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
