"""The README's two commands are the ones that CI and the documentation rely on, and links lead somewhere."""

import re


def test_ci_runs_the_readmes_test_command(workspace):
    commands = re.findall(r"```bash\n(python3 tools/run\.py .*?)\n```", (workspace / "README.md").read_text(), re.S)
    assert len(commands) == 2
    assert commands[0].split()[2:4] == ["hybrid-sr", "upscale"]
    assert commands[1] in (workspace / ".ci" / "run").read_text().splitlines()


def test_links_between_pages_lead_somewhere(workspace):
    pages = [workspace / "README.md", *workspace.glob("docs/**/*.md")]
    pages += [*workspace.glob("packages/*/*.md"), *workspace.glob("packages/*/docs/**/*.md")]
    broken = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        broken += [f"{page.name}: {link}" for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []
