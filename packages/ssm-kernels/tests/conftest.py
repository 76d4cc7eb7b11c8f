"""What Triton's interpreter and PyTorch's exporter repeat for every call and need once in a process.

A version that lacks one of the private names below runs as it is: slower, and with the same results.
"""

import copy
import dataclasses
import functools
import importlib
import os

import pytest


def module(name):
    """Import a module, or give None where this version has none of that name."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def replace(patches, home, name, make):
    """Put `make(what is there)` in place of an attribute, where there is one."""
    if hasattr(home, name):
        patches.setattr(home, name, make(getattr(home, name)))


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

    @functools.cache
    def modules_of(fn):
        return [module for module in (tl, tl.core) if any(value is module for value in fn.__globals__.values())]

    def where_needed(patch):
        def patch_where_needed(fn):
            if any(tl.core.is_builtin(module.load) for module in modules_of(fn)):
                return patch(fn)
            return None  # only the launch, before which nothing is patched, asks for what to restore

        return patch_where_needed

    def kept(in_numpy):
        of_numbers = functools.cache(in_numpy)
        return lambda kind: in_numpy(kind.scalar) if kind.scalar.is_ptr() else of_numbers(kind.scalar)

    def without_second_sums(options):
        return dataclasses.replace(options, sanitize_overflow=False)

    interpreter = module("triton.runtime.interpreter")
    builder = getattr(interpreter, "interpreter_builder", None)
    with pytest.MonkeyPatch.context() as patches:
        if hasattr(tl.core, "is_builtin"):
            replace(patches, interpreter, "_patch_lang", where_needed)
        replace(patches, interpreter, "_get_np_dtype", kept)
        asked = hasattr(getattr(builder, "options", None), "sanitize_overflow")
        if asked and not pytestconfig.getoption("--slow"):
            replace(patches, builder, "options", without_second_sums)
        yield


@pytest.fixture(scope="session")
def lean_exporter():
    """Keep the exporter's tables of PyTorch's operators, which it makes anew for every export: half of its time.

    And try the optimizer's rules on nodes of their own operator alone, the first thing that each asks by itself.
    """

    def made_once(from_torchlib):
        make = functools.cache(from_torchlib)

        def copied(*version, **named):
            registry = copy.copy(make(*version, **named))
            registry.functions = {target: [*kinds] for target, kinds in registry.functions.items()}  # custom ones join
            return registry

        return staticmethod(copied)

    def on_its_operator(rewrite):
        def rewrite_its_operator(rule, model, graph, node, **options):
            last = rule._target_pattern.output_nodes
            if len(last) == 1 and not last[0].op.matches(node.op_type):
                return None
            return rewrite(rule, model, graph, node, **options)

        return rewrite_its_operator

    registration = module("torch.onnx._internal.exporter._registration")
    rules = module("onnxscript.rewriter._rewrite_rule")
    patterns = module("onnxscript.rewriter._pattern_ir")
    with pytest.MonkeyPatch.context() as patches:
        replace(patches, getattr(registration, "ONNXRegistry", None), "from_torchlib", made_once)
        replace(patches, module("torch._export.utils"), "_materialize_cpp_cia_ops", functools.cache)
        if hasattr(getattr(patterns, "GraphPattern", None), "output_node"):
            replace(patches, getattr(rules, "RewriteRule", None), "try_rewrite", on_its_operator)
        yield
