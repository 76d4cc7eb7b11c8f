"""The tables and plots of saved results, for a terminal and for pages that quote them. Imports no torch.

A page quotes a folder of results between two comments; everything between them is written anew by `ssm-kernels report`:

    <!-- ssm-kernels report: h100 -->
    <!-- end of report -->

The folder is named relative to the folder of results. "h100 speed" instead of "h100" quotes the comparison alone, "h100
missed selective_scan" the targets that operators of this name, or with more behind it, fall short of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from .cliffs import grids, verdict
from .plots import draw_results, draw_sweep
from .rows import Environment, Row, as_table, read_report
from .shapes import LEGEND
from .targets import OURS, as_markdown, as_missed, as_text, compare, summary
from .tuning import TUNING, tuning_table

RESULTS, SWEEP = "results.json", "sweep.json"
PLOT, SWEEP_PLOT = "results.png", "sweep.png"
BLOCK = re.compile(
    r"(<!-- ssm-kernels report: (\S+?)( speed| missed \S+)? -->\n)(.*?)(<!-- end of report -->)", re.DOTALL
)


def best_of_ours(rows: Sequence[Row]) -> str:
    """Return the implementation that a sweep is about."""
    return next((impl for impl in OURS if any(row.impl == impl for row in rows)), OURS[-1])


def print_report(folder: Path) -> None:
    """Print the tables of a folder and draw its plots.

    Raises:
        ValueError: The folder has no results, or what it has is not readable.
    """
    if not has_results(folder):
        raise ValueError(f"{folder}: has neither {RESULTS} nor {SWEEP}; run ssm-kernels bench --out {folder} first")
    if (folder / RESULTS).exists():
        rows, environment = read_report(folder / RESULTS)
        comparisons = list(compare(rows))
        print(describe(environment), as_table(rows), "", as_text(comparisons), "", summary(comparisons), sep="\n")
        print(draw_results(rows, environment, folder / PLOT))
    if (folder / SWEEP).exists():
        rows, environment = read_report(folder / SWEEP)
        print(describe(environment))
        for title, table in grids(rows, best_of_ours(rows)):
            print(f"\nselective_scan, {title}: ms (mamba_ssm / ours)\n{table}")
        print("", verdict(rows, best_of_ours(rows)), "", sep="\n")
        print(draw_sweep(rows, environment, folder / SWEEP_PLOT))


def draw_missing(results: Path) -> None:
    """Draw the plots that the folders of results do not have yet, and say so."""
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        for name, picture, draw in ((RESULTS, PLOT, draw_results), (SWEEP, SWEEP_PLOT, draw_sweep)):
            if (folder / name).exists() and not (folder / picture).exists():
                print(draw(*read_report(folder / name), folder / picture))


def has_results(folder: Path) -> bool:
    """Say whether a folder holds anything to report."""
    return (folder / RESULTS).exists() or (folder / SWEEP).exists()


def describe(environment: Environment) -> str:
    """Say in a line what was measured on what."""
    known = {key: value for key, value in environment.items() if value is not None and not key.endswith("_per_s")}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def fill_page(page: Path, results: Path) -> str:
    """Return the page with every block of it written from the results.

    Raises:
        ValueError: A block names a folder that holds no results.
    """

    def filled(match: re.Match[str]) -> str:
        start, name, part, _, end = match.groups()
        folder = results / name
        if not has_results(folder):
            raise ValueError(f"{page}: quotes {name}, but {folder} has neither {RESULTS} nor {SWEEP}")
        if part is None:
            body = _everything(folder, os.path.relpath(folder, page.parent))
        else:
            body = _speed(folder) if part == " speed" else _missed(folder, part.split()[-1])
        return f"{start}\n{body}\n\n{end}"

    return BLOCK.sub(filled, page.read_text())


def quoted(page: Path) -> set[str]:
    """Return the folders of results that a page quotes."""
    return {match.group(2) for match in BLOCK.finditer(page.read_text())}


def add_blocks(page: Path, results: Path) -> None:
    """Give the page an empty block for every folder of results that it does not quote; make it if it is missing."""
    if not page.exists():
        page.write_text("# Results\n")
    known = quoted(page)
    for folder in sorted(path for path in results.iterdir() if path.is_dir() and has_results(path)):
        if folder.name not in known:
            block = f"\n## {folder.name}\n\n<!-- ssm-kernels report: {folder.name} -->\n<!-- end of report -->\n"
            page.write_text(page.read_text() + block)


def _speed(folder: Path) -> str:
    rows, environment = read_report(folder / RESULTS)
    comparisons = list(compare(rows))
    return f"{describe(environment)}\n\n{as_markdown(comparisons)}\n\n{summary(comparisons)}"


def _missed(folder: Path, op: str) -> str:
    rows, environment = read_report(folder / RESULTS)
    return f"{describe(environment)}\n\n{as_missed([c for c in compare(rows) if c.op.startswith(op)])}"


def _everything(folder: Path, link: str) -> str:
    parts = []
    if (folder / RESULTS).exists():
        rows, environment = read_report(folder / RESULTS)
        comparisons = list(compare(rows))
        parts.append(f"[{RESULTS}]({link}/{RESULTS}): {describe(environment)}")
        parts += [as_markdown(comparisons), summary(comparisons)] if comparisons else []
        parts += _picture(folder, link, PLOT, "Speed-ups and roofline")
        for op in dict.fromkeys(row.op for row in rows):
            table = as_table([row for row in rows if row.op == op], name_op=False)
            parts.append(f"### {op} ({LEGEND[op]})\n\n```\n{table}\n```")
    if (folder / SWEEP).exists():
        rows, environment = read_report(folder / SWEEP)
        parts.append(f"[{SWEEP}]({link}/{SWEEP}): {describe(environment)}")
        parts += _picture(folder, link, SWEEP_PLOT, "Time per element of the sweep")
        for title, table in grids(rows, best_of_ours(rows)):
            parts.append(f"### Sweep: {title}, ms (mamba_ssm / ours)\n\n```\n{table}\n```")
        parts.append(f"```\n{verdict(rows, best_of_ours(rows))}\n```")
    if (folder / TUNING).exists():
        parts.append(f"### Settings of the scan's kernels\n\n```\n{tuning_table(folder / TUNING)}\n```")
    return "\n\n".join(parts)


def _picture(folder: Path, link: str, name: str, title: str) -> list[str]:
    return [f"![{title}]({link}/{name})"] if (folder / name).exists() else []
