"""The report of tests on the oldest dependencies is of the bounds that the packages state now."""

import importlib.util
import json

from packaging.requirements import Requirement


def test_report_is_green_and_of_these_bounds(workspace):
    """A bound that is lowered or added was not tried: tools/lowest_bounds.py must run again."""
    spec = importlib.util.spec_from_file_location("lowest_bounds", workspace / "tools" / "lowest_bounds.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = json.loads((workspace / "docs/results/lowest-bounds.json").read_text())["packages"]
    assert list(found) == list(tool.PACKAGES)
    for package, part in found.items():
        assert part["exit_code"] == part["failed"] == 0 < part["passed"], package
        assert sorted(part["versions"]) == tool.bounded(package)
        table = tool.project(package)
        lines = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
        for need in map(Requirement, lines):
            tried = part["versions"].get(need.name.lower())
            assert tried is None or tried in need.specifier, f"{package}: {need}, tried {tried}"
            lower = [bound.version for bound in need.specifier if bound.operator == ">="]
            assert tried is None or tried.startswith(lower[0]), f"{package}: {need} is lower than {tried}"
