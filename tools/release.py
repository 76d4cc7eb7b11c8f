"""Release one package: version, changelog, ranges of its dependants, wheels, the name of the tag.

    python tools/release.py ssm-kernels 0.2.0 [--date 2026-11-30] [--widen vim-compress ...] [--dist dist] [--check]

The five packages have versions of their own. A release must not leave a dependant that cannot be installed beside it
without anybody deciding so. Therefore, in this order, and nothing of it is written unless all of it holds:

1. The version is newer than the package's, and its changelog has an unreleased section that says something.
2. `pyproject.toml` and `CHANGELOG.md` get the version and the date; `--widen` names dependants whose upper bound is
   raised to the next minor version (a promise: run their tests first), and their changelogs are told.
3. All wheels are built, and for each dependant the installer resolves it together with the released wheel, from the
   built wheels alone, without outside dependencies. A dependant that excludes the new version stays on the old one; it
   is reported.
4. The tag is printed, such as hybrid-sr-v0.2.0, with the commands to commit and tag.

`--check` works on a copy and changes nothing. The exit code is 1 if a package named with --widen does not resolve, 2
for bad input.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ssm-kernels", "hybrid-sr", "muse-mamba", "mamba-diffusion", "vim-compress")
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
UNRELEASED = re.compile(r"^## (\S+) \(unreleased\)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What a release means for one dependant: its requirement, and whether both install together, or why not."""

    package: str
    requirement: str
    together: bool
    reason: str


def project(root: Path, package: str) -> dict[str, Any]:
    """Return the [project] table of a package."""
    return tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())["project"]


def requirements_on(root: Path, dependant: str, package: str) -> list[str]:
    """Return the requirement strings of a package, extras included, that name another one."""
    table = project(root, dependant)
    wanted = [*table.get("dependencies", ())]
    for extra in table.get("optional-dependencies", {}).values():
        wanted += extra
    return sorted({line for line in wanted if re.match(rf"{re.escape(package)}(?![\w-])", line)})


def parts(version: str) -> tuple[int, ...]:
    """Return the numbers of a version.

    Raises:
        ValueError: It is not three numbers with dots.
    """
    if VERSION.fullmatch(version) is None:
        raise ValueError(f"release: the version must be three numbers such as 0.2.0, got {version!r}")
    return tuple(map(int, version.split(".")))


def bump(root: Path, package: str, version: str, date: str) -> None:
    """Write the version and the date into pyproject.toml and CHANGELOG.md.

    Raises:
        ValueError: The version is not newer, or the changelog has nothing to release.
    """
    folder = root / "packages" / package
    old = project(root, package)["version"]
    log = (folder / "CHANGELOG.md").read_text()
    section = UNRELEASED.search(log)
    if section is None or not section[2].strip():
        raise ValueError(f"release: {package}'s CHANGELOG.md has no unreleased section with entries; say what changed")
    first = section[1] == version == old  # the version that the project was created with
    if parts(version) <= parts(old) and not first:
        raise ValueError(f"release: the version of {package} must be above {old}, got {version}")
    file = folder / "pyproject.toml"
    text, count = re.subn(r'^version = ".*"$', f'version = "{version}"', file.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)
    head = f"## {version} ({date})\n"
    (folder / "CHANGELOG.md").write_text(log[: section.start()] + head + section[2] + log[section.end() :])


def widen(root: Path, dependant: str, package: str, version: str) -> None:
    """Raise a dependant's upper bound to the next minor version, and tell its changelog.

    Raises:
        ValueError: It does not depend on the package, or its bounds are written in another way.
    """
    major, minor, _ = parts(version)
    bound = f"<{major}.{minor + 1}"
    found = requirements_on(root, dependant, package)
    if not found:
        raise ValueError(f"release: {dependant} does not depend on {package}; leave it out of --widen")
    file = root / "packages" / dependant / "pyproject.toml"
    text = file.read_text()
    for line in found:
        new, count = re.subn(r"<\d+\.\d+(\.\d+)?$", bound, line)
        if count != 1:
            raise ValueError(f"release: {dependant} asks for {line!r}; its upper bound must be the last, such as <0.2")
        text = text.replace(f'"{line}"', f'"{new}"')
    file.write_text(text)
    log = root / "packages" / dependant / "CHANGELOG.md"
    entry = f"- Works with {package} {version}.\n"
    said = log.read_text()
    section = UNRELEASED.search(said)
    if section is not None:
        said = said[: section.end()].rstrip() + "\n" + entry + "\n" + said[section.end() :]
    else:
        major, minor, patch = parts(project(root, dependant)["version"])
        number = f"{major}.{minor}.{patch + 1}"
        place = said.find("## ")
        place = len(said) if place < 0 else place
        said = said[:place] + f"## {number} (unreleased)\n\n{entry}\n" + said[place:]
    log.write_text(said.rstrip() + "\n")


def uv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call uv offline."""
    from uv import find_uv_bin

    command = [find_uv_bin(), "--offline", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def build(root: Path, dist: Path) -> None:
    """Build every wheel.

    Raises:
        ValueError: One cannot be built.
    """
    done = uv("build", "--all-packages", "--wheel", "--quiet", "--out-dir", str(dist), cwd=root)
    if done.returncode != 0:
        raise ValueError(f"release: the wheels cannot be built: {done.stderr.strip()}")


def resolve(root: Path, dist: Path, package: str, version: str) -> list[Outcome]:
    """Let the installer resolve every dependant together with the released version, from the built wheels.

    Outside dependencies are replaced by stand-ins, since only the ranges between the members are in question.
    """
    outcomes = []
    for dependant in PACKAGES:
        wanted = requirements_on(root, dependant, package)
        if dependant == package or not wanted:
            continue
        own = project(root, dependant)["version"]
        with tempfile.TemporaryDirectory(prefix="release-") as work:
            overrides = Path(work) / "outside.txt"
            overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in outside(root)))
            asked = Path(work) / "asked.txt"
            asked.write_text(f"{dependant}=={own}\n{package}=={version}\n")
            done = uv("pip", "compile", "--no-index", "--find-links", str(dist), "--override", str(overrides),
                      "--no-header", "--quiet", str(asked), cwd=Path(work))  # fmt: skip
        reason = " ".join(done.stderr.split())
        outcomes.append(Outcome(dependant, ", ".join(wanted), done.returncode == 0, reason))
    return outcomes


def outside(root: Path) -> list[str]:
    """Return the names of everything that the packages need from elsewhere."""
    names = set()
    for package in PACKAGES:
        table = project(root, package)
        for line in itertools.chain(table.get("dependencies", ()), *table.get("optional-dependencies", {}).values()):
            names.add(re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0])
    return sorted(names - set(PACKAGES))


def release(
    root: Path, package: str, version: str, *, date: str, widened: list[str], dist: Path
) -> tuple[str, list[Outcome]]:
    """Change the files of a checkout, build its wheels, and resolve.

    Returns:
        The tag, and what the release means for every dependant.

    Raises:
        ValueError: Something does not fit; the checkout is then half changed, so give a copy.
    """
    parts(version)
    bump(root, package, version, date)
    for dependant in widened:
        widen(root, dependant, package, version)
    build(root, dist)
    return f"{package}-v{version}", resolve(root, dist, package, version)


def copy_of(root: Path, target: Path) -> Path:
    """Copy what a build needs: the root's pyproject.toml, and the packages without tests and caches."""
    target.mkdir(parents=True)
    shutil.copy2(root / "pyproject.toml", target)
    left_out = shutil.ignore_patterns("__pycache__", "tests", "*.egg-info", "dist", "build", "runs", "docs")
    shutil.copytree(root / "packages", target / "packages", ignore=left_out)
    return target


def main() -> int:
    """Rehearse on a copy; if all is well and --check is off, take the changed files over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("version", help="three numbers, such as 0.2.0")
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="of the changelog, today if not given"
    )
    parser.add_argument("--widen", nargs="+", default=[], choices=PACKAGES, metavar="PACKAGE", help="dependants")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the released wheel goes")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-") as work:
        copy, dist = copy_of(ROOT, Path(work) / "copy"), Path(work) / "dist"
        try:
            tag, outcomes = release(
                copy, options.package, options.version, date=options.date, widened=options.widen, dist=dist
            )
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        for found in outcomes:
            verdict = "installs beside it" if found.together else "stays on the old one"
            print(f"{found.package} ({found.requirement}): {verdict}")
        if refused := [found.package for found in outcomes if not found.together and found.package in options.widen]:
            print(f"release: {', '.join(refused)} should work with {tag} and does not resolve", file=sys.stderr)
            return 1
        if not options.check:
            take_over(copy, dist, options.package, options.dist)
    print(f"tag {tag}" + ("; nothing was changed" if options.check else ""))
    if not options.check:
        print(f"git commit -am '{options.package} {options.version}' && git tag {tag}")
    return 0


def take_over(copy: Path, dist: Path, package: str, target: Path) -> None:
    """Take the changed files and the released wheel out of the copy."""
    for name in PACKAGES:
        for file in ("pyproject.toml", "CHANGELOG.md"):
            new, old = copy / "packages" / name / file, ROOT / "packages" / name / file
            if new.read_bytes() != old.read_bytes():
                old.write_bytes(new.read_bytes())
    target.mkdir(parents=True, exist_ok=True)
    for wheel in dist.glob(f"{package.replace('-', '_')}-*.whl"):
        shutil.copy2(wheel, target)


if __name__ == "__main__":
    sys.exit(main())
