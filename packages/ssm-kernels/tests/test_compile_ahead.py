"""Compiling ahead of a first call: launches on meta tensors compile and run nothing, and no failure there is one."""

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ssm_kernels.ops import ahead
from ssm_kernels.ops.launch import compile_only, launch


class Kernel:
    """A stand-in for what `triton.jit` makes."""

    arg_names = ("x", "n")

    def __init__(self):
        self.launched, self.compiled = [], []

    def __getitem__(self, grid):
        return lambda **kwargs: self.launched.append((grid, kwargs))

    def warmup(self, *, grid, **kwargs):
        self.compiled.append((threading.current_thread().name, kwargs["x"].device.type, kwargs["n"]))


@pytest.fixture
def no_gpu(monkeypatch):
    """No GPU is asked for the current device, and every call is the first of its kind."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ahead, "_met", set())


def run(kernel, x):
    launch(kernel, 1, "key", {"x": x}, lambda: {"n": 3})


def test_launches_compile_and_run_nothing_in_that_thread_alone():
    kernel = Kernel()
    with compile_only():
        run(kernel, torch.empty(2, device="meta"))
        other = threading.Thread(target=run, args=(kernel, torch.ones(2)))
        other.start()
        other.join()
    assert len(kernel.compiled) == 1 and len(kernel.launched) == 1
    run(kernel, torch.ones(2))
    assert len(kernel.compiled) == 1 and len(kernel.launched) == 2


def test_forward_is_waited_for_and_the_backward_goes_on(no_gpu):
    forward, backward, go_on = Kernel(), Kernel(), threading.Event()

    def behind():
        go_on.wait(60)
        run(backward, torch.empty(2, device="meta"))

    ahead.compile_ahead(torch.device("cuda"), lambda: run(forward, torch.empty(2, device="meta")), behind)
    assert [made[1:] for made in forward.compiled] == [("meta", 3)] and not backward.compiled
    go_on.set()
    ahead.wait_for_compilation()
    assert len(backward.compiled) == 1 and not (forward.launched or backward.launched)


def test_threads_that_compile_load_as_well(no_gpu):
    """Loading a kernel has Triton run the C compiler, which takes a second: not one after the other at the launches."""
    loaders = []

    class Compiled:
        @property
        def run(self):
            loaders.append(threading.current_thread())

    with ahead._Pool(torch.device("cuda")) as pool:
        kernel = pool.submit(Compiled).result()
    assert isinstance(kernel, Compiled)
    assert len(loaders) == 1 and loaders[0] is not threading.current_thread()


def test_failures_are_left_to_the_launch(no_gpu):
    def fails():
        raise RuntimeError("a compiler that does not work")

    ahead.compile_ahead(torch.device("cuda"), fails, fails)
    ahead.wait_for_compilation()


def test_only_the_first_call_of_a_kind_on_a_gpu(no_gpu):
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    assert not ahead.first_call("a", torch.ones(1))
    assert [ahead.first_call(kind, on_gpu) for kind in "aabab"] == [True, False, True, False, False]


def test_meta_tensors_have_the_layout_of_the_originals():
    made = ahead.as_meta(((torch.ones(4, 6, dtype=torch.bfloat16).mT, None), 3, True))
    assert made[0][0].device.type == "meta" and made[0][0].stride() == (1, 6) and made[0][0].dtype == torch.bfloat16
    assert made[0][1] is None and made[1:] == (3, True)
