"""What the four trainers say when a GPU's memory is full: each may take 3 GiB of one, and asks for more.

    python3 tools/full_memory.py --data DIR --tokenizer DIR --out FILE.json

DIR is that of tools/two_gpus.py. A row holds the arguments, the exit code and the last line; 1 if a trainer did not end
with exit code 1 and a line that says which micro-batch fits.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from two_gpus import commit, environment, trainers

GIB = 3
BATCH = {"hybrid-sr": 32, "muse-mamba": 512, "mamba-diffusion": 64, "vim-compress": 2048}
WANTED = re.compile(r"memory is full at --micro_batch \d+; --micro_batch \d+ fits")
CODE = f"""
import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({GIB} * 2**30 / total)
from importlib import import_module
sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def main() -> int:
    """Run them one after another, write and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sr/, muse/, diff/ and vim/emoji.npz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="model/ of a tokenizer run, for muse-mamba")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = []
    for name, trainer in trainers(asked.tokenizer).items():
        batch = ["--micro_batch", str(BATCH[name]), "--global_batch", str(BATCH[name]), "--workers", "2"]
        words = [trainer.preset, *batch, "--data", str(asked.data / trainer.data), *trainer.more]
        out = Path(tempfile.mkdtemp(prefix=f"{name}-")) / "run"
        child = [sys.executable, "-c", CODE, trainer.module, *words, "--out", str(out)]
        ended = subprocess.run(child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        said = (ended.stdout.strip().splitlines() or [""])[-1]
        rows.append({"trainer": trainer.module, "preset": trainer.preset, "exit_code": ended.returncode, "said": said})
        print(json.dumps(rows[-1]), flush=True)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "environment": environment(), "allowed_gib": GIB}
    asked.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return int(any(row["exit_code"] != 1 or not WANTED.search(row["said"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
