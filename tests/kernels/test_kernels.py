"""Every Triton kernel against its twin, and what is said of bad input.

On a CUDA machine the kernels run compiled. Elsewhere they run in Triton's interpreter, which has to be chosen before
Triton is imported: this file, run as a script, checks all cases in a process of its own and prints what failed.
"""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from interpreting import check, needs_triton, print_failures, run_interpreted
from problems import compare

from apart_fast import kernels
from apart_fast.errors import UserError
from apart_fast.kernels import KERNELS
from apart_fast.kernels.problems import CALLS, EPS, Call, Problem, example_arguments


def update_omega_nan_case(device):
    """NaN gradients leave omega as it is and show in the gradients of the step sizes."""
    p = Problem(2, 5, 7, 3, 2, device=device)
    g = p.gradient()
    g[0] = math.nan
    code = torch.full(p.shape, 4, dtype=torch.int8, device=device)
    sizes = dict(alpha=p.scalar(0.004), alpha_omega=p.scalar(EPS), eps=EPS)
    compare(Call("update_omega", (g, code, p.store, p.crops), dict(padding=p.padding, **sizes), exact=False))


def far_case(device):
    """Images and store of more than 2**31 elements; on a CPU the memory is reserved and only the last rows touched."""
    p = Problem(2, 32, 32, 3, 2, store=torch.int8, device=device)
    first = torch.arange(2, device=device)
    images = torch.empty(2**31 // (32 * 32 * 3) + 9, 32, 32, 3, dtype=torch.uint8, device=device)
    store = torch.empty(2**31 // (36 * 36 * 3) + 9, 36, 36, 3, dtype=torch.int8, device=device)
    rows, indices = images.shape[0] - 1 - first, store.shape[0] - 1 - first
    images[rows], store[indices] = p.images[:2], p.store[:2]
    far, near = (replace(p.crops, rows=r, indices=i) for r, i in ((rows, indices), (first, first)))
    start = dict(scale=p.scalar(EPS), eps=EPS)
    got = KERNELS["start"].triton_launcher(images, far, 2, store=store, **start)
    expected = kernels.start(p.images, near, 2, store=p.store, **start)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    sizes = dict(padding=2, alpha=p.scalar(0.004), alpha_omega=p.scalar(EPS), eps=EPS)
    code, g = torch.full(p.shape, 5, dtype=torch.int8, device=device), p.gradient()
    KERNELS["update_omega"].triton_launcher(g, code, store, far, **sizes)
    kernels.update_omega(g, code, p.store, near, **sizes)
    assert torch.equal(store[indices], p.store[:2])


def example_case(device, kernel, *args):
    compare(CALLS[kernel](device, *args))


def _cases():
    """(name, function, arguments) of every comparison."""
    for kernel, args in example_arguments():
        if kernel != "update" and not kernel.startswith("relu"):  # they have files of their own
            words = [str(a).replace("torch.", "").replace(", ", "x").strip("()") for a in args]
            yield " ".join([kernel, *words]), example_case, (kernel, *args)
    yield "update_omega nan", update_omega_nan_case, ()
    yield "far", far_case, ()


CASES = {name: (case, args) for name, case, args in _cases()}


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_triton_kernel_equals_twin(name, request):
    check(CASES, name, request)


# --- bad input


def bad_calls():
    p = Problem(2, 4, 4, 3, 1)
    x = torch.zeros(p.shape)
    code = torch.zeros(p.shape, dtype=torch.int8)
    start = (p.crops, p.padding)
    memory = dict(store=p.store, scale=p.scalar(0.1), eps=EPS)
    sizes = dict(padding=p.padding, alpha=p.scalar(0.1), alpha_omega=p.scalar(0.1), eps=EPS)
    return {
        "float images": lambda: kernels.start(p.images.float(), *start),
        "half inputs": lambda: kernels.start(p.images, *start, dtype=torch.bfloat16),
        "noise and store": lambda: kernels.start(p.images, *start, noise=x, **memory),
        "store without scale": lambda: kernels.start(p.images, *start, store=p.store),
        "bfloat16 store": lambda: kernels.start(p.images, *start, **{**memory, "store": p.store.bfloat16()}),
        "unpadded store": lambda: kernels.start(p.images, *start, **{**memory, "store": p.store[:, 1:-1, 1:-1]}),
        "store without indices": lambda: kernels.start(p.images, replace(p.crops, indices=None), p.padding, **memory),
        "half x": lambda: kernels.learned_step(x.half(), None, x, p.scalar(0.1), EPS),
        "other shape": lambda: kernels.learned_step(x, None, x[:1], p.scalar(0.1), EPS),
        "float code": lambda: kernels.update_omega(x, x, p.store, p.crops, **sizes),
        "store of other padding": lambda: kernels.update_omega(x, code, p.store[:, 1:].contiguous(), p.crops, **sizes),
        "half attack": lambda: kernels.projected_step(x.half(), x.half(), x, 0.1, 0.1),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_one_line_of_user_error(name):
    with pytest.raises(UserError) as error:
        bad_calls()[name]()
    assert "\n" not in str(error.value)


def test_crops_without_memory_lead_to_no_row_of_omega():
    p = Problem(2, 4, 4, 3, 1)
    crops = replace(p.crops, indices=None)
    assert len(crops) == 2 and kernels.start(p.images, crops, p.padding)[0].shape == p.shape
    g, code = torch.zeros(p.shape), torch.zeros(p.shape, dtype=torch.int8)
    sizes = dict(padding=p.padding, alpha=p.scalar(0.1), alpha_omega=p.scalar(0.1), eps=EPS)
    for call in (
        lambda: kernels.update_omega(g, code, p.store, crops, **sizes),
        lambda: kernels.scatter_crop(p.store, g, crops),
    ):
        with pytest.raises(ValueError, match="no indices"):
            call()


@pytest.mark.parametrize(("old", "new"), [("step", "learned_step"), ("finish", "update_omega")])
def test_former_names_lead_to_the_kernels(old, new):
    with pytest.warns(DeprecationWarning, match=f"is now apart_fast.kernels.{new}"):
        assert getattr(kernels, old) is getattr(kernels, new)
    with pytest.raises(AttributeError, match="no attribute 'steps'"):
        kernels.steps  # noqa: B018


def test_inputs_that_require_gradients_are_accepted_outside_autograd():
    a = torch.randn(2, 3, 4, 5, requires_grad=True)
    s = kernels.capture_sign(a)
    assert not kernels.add_sign(a, s, torch.tensor(0.1)).requires_grad
    assert not kernels.sign_dot(a, s).requires_grad


def test_twins_work_where_triton_is_missing():
    """As on macOS: the import fails there, so it is made to fail here."""
    script = """
import sys
sys.modules["triton"] = None
import torch
from apart_fast import kernels
from apart_fast.kernels import aot, launch
assert not launch.HAS_TRITON
print(kernels.capture_sign(torch.tensor([-2.0, 0.0, 3.0])).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[-1, 0, 1]", done.stderr[-4000:]


if __name__ == "__main__":
    print_failures(CASES)
