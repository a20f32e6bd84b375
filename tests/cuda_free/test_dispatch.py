"""Which kernels a step launches, by what was chosen and what was found wrong; the twins wait for nothing either."""

import inspect
import re
from unittest import mock

import pytest
import torch
from fake_cuda import CUDA, fake_cuda
from test_device_step import METHODS, PRECISIONS, batch_of, parts, small_network, stores_of

from apart_fast import kernels
from apart_fast.kernels import KERNELS, dispatch
from apart_fast.training.trainer import Trainer


def captured_step(cuda, made):
    """Kernels that a captured step launches."""
    Trainer._device_step(made, batch_of(8))
    cuda.launches.clear()
    with cuda.capture():
        Trainer._device_step(made, batch_of(8))
    return set(cuda.launches)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amp", PRECISIONS)
def test_the_twins_launch_no_kernel_and_can_be_captured(method, amp):
    for store in stores_of(method):
        with fake_cuda() as cuda:
            kernels.use("torch")
            assert captured_step(cuda, parts(small_network(), method, amp, store)) == set()
            assert set(kernels.active().values()) == {"torch"}


@pytest.mark.parametrize("name", ["start", "learned_step", "update_omega", "relu_add_sign", "relu_sign_dot"])
def test_a_single_kernel_gives_way_to_its_twin(name):
    with fake_cuda() as cuda:
        every = captured_step(cuda, parts(small_network()))
        assert name in every
        kernels.disable(name, "wrong")
        assert captured_step(cuda, parts(small_network())) == every - {name}
        assert kernels.active() == {n: "torch" if n == name else "triton" for n in KERNELS}
        assert dispatch.reasons() == {name: "wrong"}
        kernels.use("auto")
        assert captured_step(cuda, parts(small_network())) == every


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_asks_for_itself(name):
    """The function of a kernel asks by its own name: another one would be disabled in its place."""
    function = KERNELS[name].function
    asks = inspect.getmodule(function).launched if name == "update" else function
    source = inspect.getsource(asks)
    assert re.findall(r'on_gpu\("(\w+)", ', source) == [name]


@pytest.mark.parametrize("fault", [None, "no compiler"])
def test_the_first_call_on_a_gpu_looks_once(fault, capsys):
    with fake_cuda() as cuda, mock.patch.object(dispatch, "triton_fault", side_effect=[fault]) as asked:
        for _ in range(3):
            kernels.capture_sign(torch.zeros(4, device=CUDA))
        assert asked.call_count == 1
        assert cuda.launches["capture_sign"] == (3 if fault is None else 0)
    assert capsys.readouterr().out.count("no compiler") == (fault is not None)


def test_nothing_is_chosen_while_a_graph_is_captured():
    with fake_cuda() as cuda, cuda.capture():
        for change in (lambda: kernels.use("torch"), lambda: kernels.disable("start", "wrong")):
            with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
                change()
