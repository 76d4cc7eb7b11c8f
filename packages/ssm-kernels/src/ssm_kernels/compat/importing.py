"""Make the drop-in packages importable, and take them away again. Nothing of torch is imported here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .names import DISTRIBUTIONS, MODULES, VERSIONS

PACKAGES = tuple(name for name in MODULES if "." not in name)


def install(*, packages: Sequence[str] = PACKAGES, shadow: bool = False) -> tuple[str, ...]:
    """Make imports of mamba-ssm and its relatives find the operators of this package, until `uninstall`.

    Call it before the code that imports them. `importlib.util.find_spec` and `importlib.metadata.version` find the
    packages too, with "+ssm.kernels" behind the version; `pip` does not see them.

    Args:
        packages: Which of `PACKAGES` to provide: mamba_ssm, causal_conv1d, and the compiled extensions
            selective_scan_cuda, selective_scan_cuda_core, selective_scan_cuda_oflex, causal_conv1d_cuda.
        shadow: Also put those in front that are really installed, or already imported; `uninstall` gives them back.

    Returns:
        The packages that are provided now, those of earlier calls included.

    Raises:
        ValueError: A name is unknown, or a package is really there and `shadow` is false. Then nothing is installed.
    """
    for name in packages:
        if name not in PACKAGES:
            _refuse(f"packages must be of {', '.join(PACKAGES)}, got {name!r}; leave packages out to provide them all")
    new = [name for name in packages if name not in _FINDER.provided]
    real = {name: place for name in new if (place := _place(name)) is not None}
    if real and not shadow:
        found = ", ".join(f"{name} ({place})" for name, place in real.items())
        _refuse(
            f"packages must not be installed already, got {found}; pass shadow=True to put the operators of "
            "ssm_kernels in front of them, or name the others in packages"
        )
    for name in new:
        _FINDER.shadowed.update(_take_out(name))
    _FINDER.provided.extend(new)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    return tuple(_FINDER.provided)


def installed() -> tuple[str, ...]:
    """Give the packages that `install` provides at the moment."""
    return tuple(_FINDER.provided)


def uninstall() -> None:
    """Undo `install`: later imports find what is really there. Names already imported elsewhere keep working."""
    for name in _FINDER.provided:
        _take_out(name)
    sys.modules.update(_FINDER.shadowed)
    _FINDER.provided.clear()
    _FINDER.shadowed.clear()
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


class _Finder(DistributionFinder, Loader):
    """Finds, and fills, the modules of `names.MODULES` whose package is provided."""

    def __init__(self) -> None:
        self.provided: list[str] = []
        self.shadowed: dict[str, ModuleType] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.provided or fullname not in MODULES:
            return None
        package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, self, origin=__file__, is_package=package)

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        wanted = None if context is None else context.name
        for package, name in DISTRIBUTIONS.items():
            if package in self.provided and (wanted is None or _normal(wanted) == name):
                yield _Metadata(package, name)

    def exec_module(self, module: ModuleType) -> None:
        """Put the names of the module in place, and import what lies below it."""
        name = module.__name__
        module.__doc__ = f"{name} as ssm_kernels.compat provides it."
        if version := VERSIONS.get(name):
            module.__dict__["__version__"] = version
        for public, (source, attribute) in MODULES[name].items():
            home = import_module(f"{__package__}.{source}")
            setattr(module, public, getattr(home, attribute))
        for below in MODULES:
            if below.startswith(f"{name}.") and "." not in below.removeprefix(f"{name}."):
                import_module(below)


class _Metadata(Distribution):
    """Just enough for `importlib.metadata.version` and for finding out which distribution a module comes from."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def read_text(self, filename: str | PathLike[str]) -> str | None:
        return {
            "METADATA": f"Metadata-Version: 2.1\nName: {self._name}\nVersion: {VERSIONS[self._package]}\n",
            "top_level.txt": f"{self._package}\n",
        }.get(str(filename))

    def locate_file(self, path: str | PathLike[str]) -> Path:
        return Path(__file__).parent / path


_FINDER = _Finder()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _members(package: str) -> Iterable[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]


def _take_out(package: str) -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in _members(package)}


def _place(package: str) -> str | None:
    """Say where the real package is, None if there is none."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__file__", None) or "already imported"
    for finder in sys.meta_path:
        search = getattr(finder, "find_spec", None)
        if finder is not _FINDER and search is not None and (spec := search(package, None)) is not None:
            return spec.origin or "a folder without __init__.py"
    return None


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"ssm_kernels.compat.install: {message}")
