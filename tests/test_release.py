"""A rehearsal: ssm-kernels 0.2.0 comes out while hybrid-sr stays at 0.1."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def tool(workspace):
    spec = importlib.util.spec_from_file_location("release", workspace / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["release"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["release"]


@pytest.fixture(scope="module")
def rehearsal(tool, workspace, wheels, tmp_path_factory):
    """The released copy, an index with the wheels of before and after, the tag, what was said of the dependants."""
    folder = tmp_path_factory.mktemp("rehearsal")
    copy = tool.copy_of(workspace, folder / "copy")
    dist = folder / "dist"
    tag, outcomes = tool.release(copy, "ssm-kernels", "0.2.0", date="2030-01-02", widened=["vim-compress"], dist=dist)
    for wheel in wheels.glob("ssm_kernels-*.whl"):
        (dist / wheel.name).write_bytes(wheel.read_bytes())
    return copy, dist, tag, outcomes


def chosen(tool, copy, dist, folder, *asked):
    """The version of ssm-kernels that the installer takes for these packages."""
    (folder / "asked.txt").write_text("\n".join(asked))
    (folder / "outside.txt").write_text("".join(f"{name} ; python_version < '3'\n" for name in tool.outside(copy)))
    done = tool.uv(
        *("pip", "compile", "--no-index", "--find-links", str(dist), "--override", "outside.txt"),
        *("--no-header", "--no-annotate", "--quiet", "asked.txt"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return next(line.partition("==")[2] for line in done.stdout.splitlines() if line.startswith("ssm-kernels=="))


def test_tag_version_and_changelog(rehearsal):
    copy, dist, tag, _ = rehearsal
    assert tag == "ssm-kernels-v0.2.0"
    assert [file.name for file in dist.glob("ssm_kernels-0.2.0-*.whl")]
    log = (copy / "packages/ssm-kernels/CHANGELOG.md").read_text()
    assert "## 0.2.0 (2030-01-02)" in log
    assert "unreleased" not in log


def test_only_widened_dependants_go_beside_it(rehearsal):
    together = {found.package: found.together for found in rehearsal[3]}
    assert together == {"hybrid-sr": False, "muse-mamba": False, "mamba-diffusion": False, "vim-compress": True}
    assert "ssm-kernels>=0.1,<0.2" in next(found.reason for found in rehearsal[3] if found.package == "hybrid-sr")


def test_everyone_keeps_installing(tool, rehearsal, tmp_path):
    """The old dependants take the old kernels, the widened one the new; together they take what all may use."""
    copy, dist, _, _ = rehearsal
    assert chosen(tool, copy, dist, tmp_path, "hybrid-sr==0.1.0") == "0.1.0"
    assert chosen(tool, copy, dist, tmp_path, "vim-compress") == "0.2.0"
    assert chosen(tool, copy, dist, tmp_path, "vim-compress", "hybrid-sr") == "0.1.0"


def test_widened_dependant_says_so(rehearsal):
    folder = rehearsal[0] / "packages/vim-compress"
    assert '"ssm-kernels>=0.1,<0.3"' in (folder / "pyproject.toml").read_text()
    assert "- Works with ssm-kernels 0.2.0." in (folder / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ssm-kernels", "0.0.9"], "must be above 0.1.0"),
        (["ssm-kernels", "1.0"], "three numbers"),
        (["hybrid-sr", "0.2.0", "--widen", "muse-mamba"], "does not depend on hybrid-sr"),
    ],
    ids=["older", "form", "stranger"],
)
def test_mistakes_are_one_line(workspace, arguments, said):
    command = [sys.executable, str(workspace / "tools" / "release.py"), *arguments, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0
