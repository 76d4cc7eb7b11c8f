"""Write the tables of README.md and docs/ from committed JSON; `--check` only says whether a page would change.

    python tools/figures.py [--check]

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; NAME is one of TABLES below, and its
function says from which files it is made. The packages' own pages are kept by the packages' tests.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)
ORDER = ("ssm-kernels", "hybrid-sr", "muse-mamba", "mamba-diffusion", "vim-compress")
MIB = 2**20


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def read(file: Path) -> Any:
    """Return the JSON of a file below the root, None if it is not there yet."""
    return json.loads(file.read_text()) if file.is_file() else None


def kernels(root: Path) -> str:
    """Speed beside the fastest peer on an H100, from the newest folder of ssm-kernels' results."""
    folders = (root / "packages/ssm-kernels/docs/results").glob("h100-*/results.json")
    files = sorted(folders, key=lambda f: f.parent.name)
    found = read(files[-1])
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        if row.get("fwd_ms"):
            groups.setdefault((row["op"], tuple(row["shape"]), row["dtype"]), []).append(row)
    ratios: dict[str, list[list[float | None]]] = {}
    peers: dict[str, set[str]] = {}
    for (op, _, _), rows in groups.items():
        ours = next((row for row in rows if row["impl"] == "triton"), None)
        others = [row for row in rows if row["impl"] not in ("triton", "torch", "reference")]
        if ours is not None and others:
            ratios.setdefault(op, []).append([ratio(ours, others, key) for key in ("fwd_ms", "bwd_ms")])
            peers.setdefault(op, set()).update(row["impl"] for row in others)
    rows = []
    for op, pairs in sorted(ratios.items()):
        columns = [[pair[i] for pair in pairs if pair[i] is not None] for i in (0, 1)]
        slower = [sum(value < 1 for value in column if value is not None) for column in columns]
        rows.append((f"`{op}`", ", ".join(sorted(peers[op])), len(pairs), *map(span, columns), *slower))
    head = ("operator", "beside", "shapes", "forward, times as fast", "backward", "slower forward", "slower backward")
    return table(head, rows) + f"\n{found['environment']['GPU']}, GPU time, {files[-1].parent.name}.\n"


def ratio(ours: dict[str, Any], others: list[dict[str, Any]], key: str) -> float | None:
    """Return the fastest peer's time over ours, None if one of them was not measured."""
    times = [row[key] for row in others if row.get(key)]
    return min(times) / ours[key] if times and ours.get(key) else None


def span(numbers: Sequence[Any]) -> str:
    """Say from what to what."""
    if len(numbers) < 2:
        return f"{numbers[0]:.2f}" if numbers else "-"
    return f"{min(numbers):.2f} to {max(numbers):.2f}"


def upscaling(root: Path) -> str:
    """Gain over bicubic of the weights that ship, from hybrid-sr's evaluations."""
    files = sorted((root / "packages/hybrid-sr/docs/results").glob("evaluation-x?-*.json"))
    rows = []
    for file in files:
        found = read(file)
        name = file.stem.split("-", 2)[2]
        numbers = (f"{found['bicubic_psnr_y']:.2f}", f"{found['psnr_y']:.2f}", f"{found['gain_db']:+.2f}")
        rows.append((f"x{found['scale']}", name, found["n"], *numbers))
    return table(("scale", "photos", "how many", "bicubic dB", "hybrid-sr dB", "gain dB"), rows)


def hybrids(root: Path) -> str:
    """Recorded steps and pictures of hybrid-sr's networks beside HAT-light on PyTorch alone, from its speed run."""
    found = read(root / "packages/hybrid-sr/docs/results/speed-h100.json")
    base = found["graph: HAT-light eager"]
    rows = []
    for label, what in (
        ("hybrid with CAB", "contrast-baseline"),
        ("hybrid", "contrast-no-pe-no-cab"),
        ("HAT-light fused", "HAT-light, attention and norms of ssm-kernels"),
        ("HAT-light eager", "HAT-light, those of PyTorch"),
    ):
        training, picture = found[f"graph: {label}"]["training"], found[f"graph: {label}"]["inference"]
        rate, pixels = training["samples_per_s"], picture["megapixels_per_s"]
        times = (rate / base["training"]["samples_per_s"], pixels / base["inference"]["megapixels_per_s"])
        cells = (f"{rate:.0f}", f"{times[0]:.2f}", f"{training['peak_bytes'] / 1e9:.2f}", f"{pixels:.0f}")
        rows.append((what, *cells, f"{times[1]:.2f}"))
    head = ("network", "training, crops/s", "times", "GB", "upscaling x4, MP/s", "times")
    return table(head, rows) + f"\n{found['environment']['GPU']}, bfloat16\n"


def classifiers(root: Path) -> str:
    """The emoji classifier that ships, Vim-T beside DeiT-T, and a cut Vim-S, from vim-compress's results."""
    results = root / "packages/vim-compress/docs/results"
    emoji = read(results / "emoji/evaluation.json")
    rows = [("colour emoji, held out", f"{emoji['top1']:.1f} % of {emoji['pictures']} pictures right", "")]
    for file, model, name in (
        ("vim-t.json", "vim_tiny_patch16_224", "Vim-T"),
        ("vim-t-mamba2.json", "vim_tiny_patch16_224 mamba2", "Vim-T with Mamba-2 blocks"),
    ):
        for vim, other in pairs(read(results / file)["rows"], model, "deit_tiny_patch16_224"):
            what = f"{name} beside DeiT-T, {vim['image'][0]} pixels, batch {vim['batch']}"
            rows.append((what, *beside(vim["images_per_s"], other["images_per_s"])))
    cuts = read(results / "vim-s-cut.json")["rows"]
    for cut, whole in pairs(cuts, "vim_small_patch16_224 cut to 0.5", "vim_small_patch16_224"):
        what = f"Vim-S cut to half beside whole, batch {cut['batch']}, {cut['mode']}"
        rows.append((what, *beside(cut["images_per_s"], whole["images_per_s"])))
    return table(("what", "images/s", "times as fast"), rows) + "\nSpeeds: one H100, bfloat16.\n"


def pairs(rows: list[dict[str, Any]], one: str, other: str) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the rows of two models that agree in everything else."""
    key = ("image", "batch", "mode", "precision")
    found = {json.dumps([row[name] for name in key]): row for row in rows if row["model"] == other}
    for row in rows:
        peer = found.get(json.dumps([row[name] for name in key]))
        if row["model"] == one and peer is not None:
            yield row, peer


def beside(ours: float, theirs: float) -> tuple[str, str]:
    """Return both rates and their ratio."""
    return f"{ours:,.0f} / {theirs:,.0f}", f"{ours / theirs:.2f}"


def tokens(root: Path) -> str:
    """Reconstruction by the tokenizer that ships, from muse-mamba's results."""
    found = read(root / "packages/muse-mamba/docs/results/tokenizer/held-out.json")
    rows = [
        (row["size"], row["n"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{100 * row['code_usage']:.0f} %")
        for row in found["rows"]
    ]
    return table(("pixels", "held-out pictures", "PSNR dB", "SSIM", "codes in use"), rows)


def fields(root: Path) -> str:
    """The weights that ship beside classical methods on held-out fields, from mamba-diffusion's evaluations."""
    rows = []
    for weights, what in (("rgb", "pictures"), ("temperature", "sea surface temperature")):
        folder = root / "packages/mamba-diffusion/docs/results" / f"ship-{weights}"
        ours, others = read(folder / "evaluate.json"), read(folder / "baselines.json")
        if ours is None or others is None:
            return "Not measured yet.\n"
        found = {f"`{weights}`": next(iter(ours["results"].values())), **others["results"]}
        for name, result in found.items():
            part = [mean(result["rows"], key) for key in ("psnr_mean", "crps", "coverage")]
            said = (
                "-" if part[0] is None else f"{part[0]:.2f}",
                *("-" if x is None else f"{100 * x:.2f}" for x in part[1:]),
            )
            rows.append((what, len(result["rows"]), name, *said))
    return table(
        ("field", "parts", "method", "PSNR of the mean, dB", "CRPS, % of the range", "coverage of 90 %, %"), rows
    )


def mean(rows: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a column, None where the method has none."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def packages(root: Path) -> str:
    """Size and import time alone in an environment, from docs/results/packages.json (tools/measure_packages.py)."""
    found = read(root / "docs/results/packages.json")
    rows = []
    for name in ORDER:
        row = found["packages"][name]
        sizes = (f"{row['wheel_bytes'] / MIB:.1f}", f"{row['installed_bytes'] / MIB:.1f}",
                 f"{row['environment_bytes'] / MIB:,.0f}", row["distributions"])  # fmt: skip
        times = tuple(f"{row[key]:.2f}" for key in ("import_s", "help_s", "verb_s"))
        rows.append((f"[{name}](../packages/{name})", *sizes, *times, f"`{row['verb']}`"))
    sizes = ("wheel MiB", "installed MiB", "with dependencies MiB", "distributions")
    head = ("package", *sizes, "import, CPU s", "--help", "a verb", "the verb")
    return table(head, rows) + f"\n{found['environment']}\n"


def lowest_bounds(root: Path) -> str:
    """Tests on the oldest dependencies, from docs/results/lowest-bounds.json (tools/lowest_bounds.py)."""
    found = read(root / "docs/results/lowest-bounds.json")["packages"]
    rows = []
    for name in ORDER:
        part = found[name]
        which = "some, see the JSON" if " -k " in part["command"] else "all but gpu and slow"
        versions = ", ".join(f"{what} {version}" for what, version in sorted(part["versions"].items()))
        rows.append((name, which, part["passed"], part["failed"], versions, part["environment"]))
    return table(("package", "tests", "passed", "failed", "with", "on"), rows)


def scaling(root: Path) -> str:
    """What a million and a billion images cost, from docs/results/scaling.json and the formula of tools/scaling.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    from scaling import costs

    found = read(root / "docs/results/scaling.json")
    if found is None:
        return "No throughput has been measured yet: docs/results/scaling.json is missing.\n"
    head = ("trainer", "preset", "samples/s per GPU", "loader samples/s per core", "bytes per sample", "images", "GPUs",
            "time", "disk", "GPU hours", "money", "loader cores per GPU")  # fmt: skip
    return table(head, costs(found)) + f"\n{found['environment']}\n"


def two_gpus(root: Path) -> str:
    """Samples a second of one process and of two, from docs/results/two-gpus.json (tools/two_gpus.py)."""
    found = read(root / "docs/results/two-gpus.json")
    if found is None:
        return "It has not been measured yet: docs/results/two-gpus.json is missing.\n"
    rows = []
    for run in found["runs"]:
        names = dict.fromkeys(row["trainer"] for row in run["rows"])
        for name in names:
            by = {row["processes"]: row for row in run["rows"] if row["trainer"] == name}
            rates = [f"{by[n]['samples_per_s']:,.0f}" if n in by else "not measured" for n in (1, 2)]
            times = f"{by[2]['scaling']:.2f}" if 2 in by else ""
            mode = "recorded" if run["graph"] else "as it is"
            rows.append((name, by[1]["preset"], by[1]["micro_batch"], mode, *rates, times, run["commit"][:7]))
    head = ("trainer", "preset", "micro-batch", "steps", "samples/s, one GPU", "two GPUs", "times", "commit")
    which = found["environment"]
    return table(head, rows) + f"\n{which['GPU']}, torch {which['torch']}, {which['cpus']} CPU cores, {found['date']}\n"


def soak(root: Path) -> str:
    """The bad days, from docs/results/soak.json (tools/soak.py)."""
    found = read(root / "docs/results/soak.json")
    if found is None:
        return "It has not been run yet: docs/results/soak.json is missing.\n"
    rows = [
        (row["case"], row["subject"], row["times"], row["passed"], row["detail"].replace("|", "/"), row["commit"])
        for row in found["rows"]
    ]
    return (
        table(("what happens", "to", "times", "as it should", "detail", "commit"), rows) + f"\n{found['environment']}\n"
    )


def full_memory(root: Path) -> str:
    """What the trainers say on a full GPU, from docs/results/full-memory.json (tools/full_memory.py)."""
    found = read(root / "docs/results/full-memory.json")
    if found is None:
        return "It has not been run yet: docs/results/full-memory.json is missing.\n"
    rows = [(row["trainer"], row["preset"], row["exit_code"], row["said"]) for row in found["rows"]]
    which = f"{found['environment']['GPU']}, {found['allowed_gib']} GiB of it allowed, {found['date']}"
    return table(("trainer", "preset", "exit code", "last line"), rows) + f"\n{which}, commit {found['commit'][:7]}\n"


TABLES: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "upscaling": upscaling,
    "hybrids": hybrids,
    "tokens": tokens,
    "fields": fields,
    "classifiers": classifiers,
    "packages": packages,
    "lowest-bounds": lowest_bounds,
    "scaling": scaling,
    "soak": soak,
    "full-memory": full_memory,
    "two-gpus": two_gpus,
}


def fill(page: Path, root: Path) -> str:
    """Return the text of a page with every table written anew.

    Raises:
        ValueError: A block names no table, or has no end.
    """

    def write(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"{page.name}: figures must be one of {', '.join(TABLES)}, got {match[2]}")
        return f"{match[1]}\n{TABLES[match[2]](root)}\n{match[4]}"

    text = page.read_text(encoding="utf-8")
    if text.count("<!-- figures:") != len(BLOCK.findall(text)):
        raise ValueError(f"{page.name}: every <!-- figures: NAME --> needs an <!-- end of figures -->")
    return BLOCK.sub(write, text)


def pages(root: Path) -> list[Path]:
    """Return the pages that this tool keeps."""
    return sorted([root / "README.md", *(root / "docs").glob("**/*.md")])


def main() -> int:
    """Write the pages or check them; 1 if one would change under --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that would change")
    check = parser.parse_args().check
    stale = []
    for page in pages(ROOT):
        new = fill(page, ROOT)
        if new != page.read_text(encoding="utf-8"):
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
    if check:
        print(f"figures: not what the JSON says: {names}; run tools/figures.py" if stale else "figures: clean")
        return int(bool(stale))
    print(f"figures: {'wrote ' + names if stale else 'nothing to change'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
