"""ssm_kernels.compat.install: what becomes importable, what is refused, and that nothing stays behind."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest
from ssm_kernels import compat
from ssm_kernels.compat.names import MODULES


@pytest.fixture(autouse=True)
def clean():
    yield
    compat.uninstall()


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Return a function that puts a package of this name on the path, as an installation would."""

    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("real = True\n")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in compat.PACKAGES]:
        del sys.modules[name]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_name_can_be_imported(name):
    compat.install()
    module = import_module(name)
    assert module.__spec__ is not None
    missing = [public for public in MODULES[name] if not hasattr(module, public)]
    assert not missing


def test_public_checks_for_the_packages_say_yes():
    """What transformers and others ask before they import: specification, version, distribution."""
    assert importlib.util.find_spec("mamba_ssm") is None
    assert compat.install() == compat.PACKAGES == compat.installed()
    for package, distribution in {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}.items():
        assert importlib.util.find_spec(package) is not None
        import_module(package)
        assert importlib.util.find_spec(package) is not None  # now from sys.modules
        version = importlib.metadata.version(distribution)
        assert version == importlib.metadata.version(package) == import_module(package).__version__
        assert tuple(int(part) for part in version.split(".")[:2]) >= (1, 7)
        assert importlib.metadata.packages_distributions()[package] == [distribution]


def test_names_below_a_package_are_attributes():
    compat.install()
    import mamba_ssm

    function = mamba_ssm.ops.triton.selective_state_update.selective_state_update
    assert function.__module__ == "ssm_kernels.compat.state_update"


def test_what_is_not_covered_is_not_there():
    compat.install()
    with pytest.raises(ModuleNotFoundError, match="flash"):
        import_module("mamba_ssm.ops.flash")
    with pytest.raises(ImportError, match="Mamba3"):
        exec("from mamba_ssm import Mamba3")


def test_uninstall_leaves_nothing():
    before = list(sys.meta_path)
    compat.install()
    import_module("mamba_ssm")
    compat.uninstall()
    assert sys.meta_path == before
    assert not [name for name in sys.modules if name.partition(".")[0] in compat.PACKAGES]
    assert compat.installed() == ()
    with pytest.raises(ModuleNotFoundError):
        import_module("mamba_ssm")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mamba-ssm")


def test_installing_twice_changes_nothing():
    compat.install()
    module = import_module("mamba_ssm")
    assert compat.install() == compat.PACKAGES
    assert import_module("mamba_ssm") is module


def test_one_package_alone():
    assert compat.install(packages=["selective_scan_cuda_oflex"]) == ("selective_scan_cuda_oflex",)
    import_module("selective_scan_cuda_oflex")
    assert importlib.util.find_spec("mamba_ssm") is None
    assert compat.install(packages=["causal_conv1d"]) == ("selective_scan_cuda_oflex", "causal_conv1d")


def test_unknown_package_is_refused():
    with pytest.raises(ValueError, match=r"packages must be of mamba_ssm, causal_conv1d.*got 'mamba'"):
        compat.install(packages=["mamba"])


def test_real_package_is_not_shadowed_unless_asked(real):
    real("causal_conv1d")
    with pytest.raises(ValueError, match=r"got causal_conv1d \(.*__init__.py\); pass shadow=True"):
        compat.install()
    assert compat.installed() == ()
    assert compat.install(packages=["mamba_ssm"]) == ("mamba_ssm",)  # its neighbours can still be had
    assert import_module("causal_conv1d").real
    compat.install(shadow=True)
    assert not hasattr(import_module("causal_conv1d"), "real")
    compat.uninstall()
    assert import_module("causal_conv1d").real


def test_imported_package_is_not_shadowed_unless_asked(monkeypatch):
    stand_in = ModuleType("selective_scan_cuda")
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", stand_in)
    with pytest.raises(ValueError, match=r"selective_scan_cuda \(already imported\)"):
        compat.install()
    compat.install(shadow=True)
    assert import_module("selective_scan_cuda") is not stand_in
    compat.uninstall()
    assert sys.modules["selective_scan_cuda"] is stand_in


def test_nothing_is_installed_by_import_and_torch_is_not_imported():
    code = (
        "import sys, importlib.util, ssm_kernels, ssm_kernels.compat as c\n"
        "assert importlib.util.find_spec('mamba_ssm') is None\n"
        "c.install()\n"
        "assert importlib.util.find_spec('mamba_ssm') is not None\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
