"""Check who imports whom (the rules are in README.md, "How it is built"); prints one line per violation.

    python tools/import_rules.py

1. A package imports `ssm_kernels` and itself, never another package of the workspace.
2. `ssm_kernels` imports torch, numpy and the standard library; triton only in kernels.py files or inside functions,
   peers and matplotlib only inside functions, onnxscript only in `ssm_kernels.onnx`.
3. Inside an operator's folder: api -> autograd -> schema -> {reference, torch_impl, kernels}. kernels.py is imported
   inside a function of schema.py (so on first launch) or by another kernels.py; implementations of different kinds
   never import each other. api.py may also import reference.py, which needs no operator around it.
4. What a package imports from outside, it declares in its pyproject.toml (dependencies or an extra).
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

WORKSPACE = {"ssm_kernels", "hybrid_sr", "muse_mamba", "mamba_diffusion", "vim_compress"}
KERNEL_PACKAGE_MAY = {"torch", "numpy", "triton", "mamba_ssm", "causal_conv1d", "matplotlib", "onnxscript", "onnx"}
ONLY_IN_FUNCTIONS = {"triton", "mamba_ssm", "causal_conv1d", "matplotlib"}
OPERATOR_MAY = {
    "api": {"autograd", "schema", "reference"},
    "autograd": {"schema"},
    "schema": {"reference", "torch_impl", "kernels"},
    "reference": {"reference"},
    "torch_impl": {"torch_impl"},
    "kernels": {"kernels"},
}


@dataclass(frozen=True)
class Import:
    """One imported module: dotted absolute name, the line, whether it runs when the file is imported."""

    module: str
    line: int
    at_import_time: bool


def imports_of(path: Path, package: str) -> Iterator[Import]:
    """Yield every import of a file with relative ones resolved; blocks under TYPE_CHECKING are left out."""
    parents = package.split(".")

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, top)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, top)
        inner = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def operator_part(module: str) -> tuple[str, str] | None:
    """Split `ssm_kernels.ops.<operator>.<part>...` into operator and part, such as ("selective_scan", "kernels")."""
    pieces = module.split(".")
    if pieces[:2] != ["ssm_kernels", "ops"] or len(pieces) < 4:
        return None
    part = next((known for known in OPERATOR_MAY if re.fullmatch(rf"{known}(_\w+)?", pieces[3])), None)
    return (pieces[2], part) if part else None


def check_kernel_package(own_module: str, item: Import, root_name: str) -> str | None:
    """Apply rules 2 and 3 to one import of ssm_kernels; return what is wrong."""
    own = operator_part(own_module)
    if root_name not in KERNEL_PACKAGE_MAY | {"ssm_kernels"} and root_name not in sys.stdlib_module_names:
        return f"ssm_kernels may not import {root_name}"
    in_kernels = own is not None and own[1] == "kernels"
    if root_name in ONLY_IN_FUNCTIONS and item.at_import_time and not (in_kernels and root_name == "triton"):
        return f"{root_name} may only be imported inside a function"
    target = operator_part(item.module)
    if own is None or target is None or own == target:
        return None
    if target[1] not in OPERATOR_MAY[own[1]]:
        return f"{own[1]} may not import {target[1]}"
    if target[1] == "kernels" and own[1] != "kernels" and item.at_import_time:
        return "kernels may only be imported inside a function, on first launch"
    return None


def declared(pyproject: Path) -> set[str]:
    """Return the normalised names of the distributions that a package declares, extras included."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project.get("dependencies", [])]
    for extra in project.get("optional-dependencies", {}).values():
        wanted += extra
    return {re.split(r"[\s<>=!~;\[]", name, maxsplit=1)[0].lower().replace("_", "-") for name in wanted}


def check_package(folder: Path) -> Iterator[str]:
    """Yield the violations of one package under packages/."""
    providers = packages_distributions()
    wants = declared(folder / "pyproject.toml")
    own_name = folder.name.replace("-", "_")
    for path in sorted((folder / "src").rglob("*.py")):
        module = ".".join(path.relative_to(folder / "src").with_suffix("").parts)
        package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
        for item in imports_of(path, package):
            root_name = item.module.split(".")[0]
            where = f"{path.relative_to(folder.parent.parent)}:{item.line}"
            if root_name in WORKSPACE - {"ssm_kernels", own_name}:
                yield f"{where}: {own_name} may not import {root_name}; packages know ssm_kernels and themselves only"
            elif own_name == "ssm_kernels" and (wrong := check_kernel_package(module, item, root_name)):
                yield f"{where}: {wrong}"
            if root_name in sys.stdlib_module_names or root_name == own_name:
                continue
            names = {name.lower().replace("_", "-") for name in providers.get(root_name, [root_name])}
            if not names & wants:
                yield f"{where}: imports {root_name}, but pyproject.toml declares none of {', '.join(sorted(names))}"


def check(root: Path) -> list[str]:
    """Return every violation in the workspace at `root`, sorted."""
    return sorted(line for folder in sorted((root / "packages").iterdir()) for line in check_package(folder))


def main() -> int:
    """Print the violations of this workspace; exit code 1 if there are any."""
    found = check(Path(__file__).resolve().parent.parent)
    print("\n".join(found) if found else "import rules: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
