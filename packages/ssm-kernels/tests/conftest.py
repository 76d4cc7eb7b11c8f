"""What Triton's interpreter and PyTorch's exporter repeat for every call and need once in a process."""

import copy
import dataclasses
import functools
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def lean_interpreter(pytestconfig):
    """Take from Triton's interpreter what is two thirds of the time of a kernel and finds nothing in small cases.

    For every device function that a kernel calls, the interpreter looks through all members of triton.language for
    what the launch has not patched yet. For every sum and product of 32-bit integers it asks whether 64 bits would
    have given the same: offsets of these cases are far below that, and with --slow it is asked as before. It makes a
    table of all dtypes for every look into it.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    patch, builder = interpreter._patch_lang, interpreter.interpreter_builder
    in_numpy, of_numbers = interpreter._get_np_dtype, functools.cache(interpreter._get_np_dtype)

    @functools.cache
    def modules_of(fn):
        return [module for module in (tl, tl.core) if any(value is module for value in fn.__globals__.values())]

    def patch_where_needed(fn):
        if any(tl.core.is_builtin(module.load) for module in modules_of(fn)):
            return patch(fn)
        return None  # only the launch, before which nothing is patched, asks for what to restore

    def kept_in_numpy(kind):
        return in_numpy(kind.scalar) if kind.scalar.is_ptr() else of_numbers(kind.scalar)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", patch_where_needed)
        patches.setattr(interpreter, "_get_np_dtype", kept_in_numpy)
        if not pytestconfig.getoption("--slow"):
            patches.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        yield


@pytest.fixture(scope="session")
def exporter_lists_operators_once():
    """Keep the exporter's tables of PyTorch's operators, which it makes anew for every export: half of its time."""
    import torch._export.utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    make = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(*version, **named):
        registry = copy.copy(make(*version, **named))
        registry.functions = {target: [*kinds] for target, kinds in registry.functions.items()}  # custom ones join
        return registry

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        utils = torch._export.utils
        patches.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))
        yield
