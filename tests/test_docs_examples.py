"""Every fenced command and Python block of the documentation works: tools/docs_examples.py runs them."""

import subprocess
import sys

import pytest

PARTS = ["README.md", "docs", *(f"packages/{name}" for name in
         ("hybrid-sr", "mamba-diffusion", "muse-mamba", "ssm-kernels", "vim-compress"))]  # fmt: skip


def run(workspace, *arguments):
    command = [sys.executable, str(workspace / "tools" / "docs_examples.py"), *arguments]
    return subprocess.run(command, cwd=workspace, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("part", PARTS)
def test_examples_work(workspace, part):
    done = run(workspace, part)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(workspace, tmp_path):
    """The tools beside pages of our own."""
    (tmp_path / "tools").mkdir()
    for name in ("docs_examples.py", "docs_given.py"):
        (tmp_path / "tools" / name).write_text((workspace / "tools" / name).read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```python\nx = 1\nassert x == 2\n```\n", 'page.md", line 3, in <module>'),
        ("```bash\nhybrid-sr upscale --sample moon --scal 4\n```\n", "page.md:2: hybrid-sr upscale"),
        ("```bash long\nhybrid-sr train contrast-z --out runs/a\n```\n", "page.md:2: hybrid-sr train"),
        ("```bash long\nhybrid-sr info tiny \\\n  --nonsense 3\n```\n", "page.md:2: hybrid-sr info"),
        ("```bash\nfrobnicate now\n```\n", "no program called 'frobnicate'"),
        ("```bash slow\nhybrid-sr info\n```\n", "must be bash, bash long or python"),
        ("```sh\nhybrid-sr info\n```\n", "must be bash, bash long or python"),
        ("```bash\npip install nothing-here\n```\n", "no such package"),
    ],
    ids=["wrong", "option", "preset", "long option", "program", "tag", "language", "install"],
)
def test_examples_can_fail(copy, page, said):
    (copy / "page.md").write_text(page)
    done = run(copy, "page.md")
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
