"""The README's two commands are the ones that CI and the documentation rely on."""

import re


def test_ci_runs_the_readmes_test_command(workspace):
    commands = re.findall(r"```bash\n(python3 tools/run\.py .*?)\n```", (workspace / "README.md").read_text(), re.S)
    assert len(commands) == 2
    assert commands[0].split()[2:4] == ["hybrid-sr", "upscale"]
    assert commands[1] in (workspace / ".ci" / "run").read_text().splitlines()
