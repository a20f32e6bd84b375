"""Tensors of a CUDA device on a machine without one: shapes, dtypes and devices are followed, nothing is computed.

`fake_cuda()` is torch's FakeTensorMode with what it lacks where CUDA cannot be initialised. Within it a read of data on
the host (`.item()`, a branch on a tensor, a boolean index, `.tolist()`) and a mix of devices raise, as they would make
a GPU wait, break a CUDA graph, or fail. Triton launches go to `check_launch` instead of a driver.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from apart_fast.kernels import dispatch
from apart_fast.kernels.launch import Launch
from apart_fast.kernels.layout import is_dense, same_layout

CUDA, _NOWHERE = torch.device("cuda:0"), torch.device("meta")
FLOATS = {torch.float16, torch.bfloat16, torch.float32}
STORES = {torch.float16, torch.float32, torch.int8}
# dtypes that a kernel takes for an argument of this name; all others that end in _ptr are float32
DTYPES = {
    **dict.fromkeys(("g0_ptr", "g1_ptr", "g_ptr", "grad_ptr", "a_ptr", "z_ptr", "dz_ptr", "out_ptr"), FLOATS),
    **dict.fromkeys(("rows_ptr", "offsets_ptr", "indices_ptr", "table_ptr"), {torch.int64}),
    **dict.fromkeys(("images_ptr", "flips_ptr"), {torch.uint8}),
    **dict.fromkeys(("code_ptr", "s_ptr"), {torch.int8}),
    "chunks_ptr": {torch.int32},
    "store_ptr": STORES,
}
# operators that give a view, or only memory: they launch nothing
_SILENT = {
    *("view", "_unsafe_view", "as_strided", "alias", "detach", "permute", "transpose", "t", "expand", "select"),
    *("slice", "unsqueeze", "squeeze", "unbind", "split", "unfold", "reshape", "_reshape_alias", "view_as"),
    *("_record_function_enter_new", "_record_function_exit", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "device", "size", "stride"),
}


def check_launch(launch: Launch) -> None:
    """What every kernel takes for granted of its arguments: number, device, dtype, dense memory, size of the grid."""
    names, kernel = launch.kernel.arg_names, kernel_name(launch)
    assert len(launch.args) + len(launch.constexprs) == len(names), f"{kernel}: {names}"
    values = dict(zip(names, launch.args, strict=False)) | launch.constexprs
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            assert not name.endswith("_ptr") or value is None, f"{kernel}: {name} is {value}"
            continue
        assert value.device == CUDA, f"{kernel}: {name} lies on {value.device}"
        assert is_dense(value), f"{kernel}: {name} has gaps, strides {value.stride()}"
        wanted = DTYPES.get(name, {torch.float32})
        assert value.dtype in wanted, f"{kernel}: {name} is {value.dtype}, not of {wanted}"
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor) and value.ndim > 1]
    if "n" in values:  # seen as flat memory
        assert {value.numel() for value in tensors} <= {values["n"]}, f"{kernel}: sizes differ from n"
        assert all(same_layout(value, tensors[0]) for value in tensors), f"{kernel}: layouts differ"
    else:
        assert all(value.is_contiguous() for value in tensors), f"{kernel}: a tensor is not contiguous"
    assert 0 < launch.grid[0] < 2**31 and all(0 < n < 2**16 for n in launch.grid[1:]), f"{kernel}: {launch.grid}"


def kernel_name(launch: Launch) -> str:
    """`_start_kernel` -> start."""
    return launch.kernel.fn.__name__.removeprefix("_").removesuffix("_kernel")


class Cuda:
    """What stands in for the device.

    Attributes:
        capturing: whether the current stream is said to be captured.
        launches: Triton launches so far, by kernel.
    """

    def __init__(self) -> None:
        self.capturing = False
        self.launches: Counter[str] = Counter()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Within: a stream is being captured."""
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False


class _Generator:
    """Makes generators of the CPU, which say that their numbers are wanted where a tensor is filled."""

    def __new__(cls, device: Any = None, make: Any = torch.Generator) -> Any:
        return make()


class Stream:
    """A stream or an event on which nothing is ever waited for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def nothing(self, *_: Any, **__: Any) -> None:
        pass

    wait_stream = wait_event = record = synchronize = nothing
    query = lambda self: True  # noqa: E731


class Graph:
    """A CUDA graph whose replay does nothing."""

    def register_generator_state(self, generator: torch.Generator) -> None:
        pass

    def replay(self) -> None:
        pass


class _Functions(TorchFunctionMode):
    """What torch's own code does only with a driver: casts as autocast does and keeps them, and
    `torch.tensor(1, device=...)`."""

    _lowered = {torch.conv2d, torch.conv1d, torch.conv3d, torch._C._nn.linear, torch.matmul, torch.bmm, torch.addmm}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._lowered and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args = [self._cast(a, dtype) if isinstance(a, torch.Tensor) else a for a in args]
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            like = func(*args, **kwargs | {"device": "cpu"})
            return torch.zeros(like.shape, dtype=like.dtype, device=kwargs["device"])
        return func(*args, **kwargs)

    def __init__(self) -> None:
        super().__init__()
        self._casts: dict[torch.Tensor, torch.Tensor] = {}

    def _cast(self, a: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if a.dtype != torch.float32:
            return a
        if not (a.is_leaf and a.requires_grad and torch.is_autocast_cache_enabled()):
            return a.to(dtype)
        if a not in self._casts:
            self._casts[a] = a.to(dtype)
        return self._casts[a]

    def forget(self) -> None:
        """As `torch.clear_autocast_cache`."""
        self._casts.clear()


class _Mode(FakeTensorMode):
    """New tensors that C++ makes "where that one is" lie on the device too (see `nowhere` below)."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == _NOWHERE and not self.in_kernel_invocation:
            kwargs = kwargs | {"device": CUDA}
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def fake_cuda() -> Iterator[Cuda]:
    """Within: `device="cuda:0"` works, and nothing is computed on it. Tensors made before may not be used."""
    cuda = Cuda()

    def run(launch: Launch) -> tuple:
        check_launch(launch)
        cuda.launches[kernel_name(launch)] += 1
        return launch.outputs

    @contextlib.contextmanager
    def graph(graph: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        with cuda.capture():
            yield

    patched = {
        **dict(is_available=lambda: True, is_bf16_supported=lambda *_, **__: True, current_device=lambda: 0),
        **dict(mem_get_info=lambda *_: (2**40, 2**40), memory_reserved=lambda *_: 0, memory_allocated=lambda *_: 0),
        **dict(is_current_stream_capturing=lambda: cuda.capturing, Stream=Stream, Event=Stream),
        **dict(current_stream=lambda *_: Stream(), stream=lambda _: contextlib.nullcontext()),
        **dict(set_stream=lambda _: None, device_count=lambda: 1, synchronize=lambda *_: None),
        **dict(graph=graph, CUDAGraph=Graph, device=lambda _: contextlib.nullcontext()),
        "get_device_properties": lambda *_: SimpleNamespace(name="none", major=9, minor=0),
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in patched.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(Launch, "run", run))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda _: None))
        # autograd asks C++ for a stream of the device; Python still sees the device that the tensor was made for
        handlers = fake_tensor._DISPATCH_META_HANDLERS
        nowhere = {torch.ops.prim.device.default: lambda _: _NOWHERE}
        stack.enter_context(mock.patch.dict(handlers, nowhere))
        on_cuda = property(lambda tensor: tensor.device.type == "cuda")
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", on_cuda, create=True))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        for kind in (torch.Tensor, torch.nn.Parameter):
            stack.enter_context(mock.patch.object(kind, "__deepcopy__", _copied))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", _converted))
        # Triton is taken to work, and what a test chooses ends with it
        stack.enter_context(mock.patch.object(dispatch, "triton_fault", lambda: None))
        stack.enter_context(mock.patch.object(dispatch, "_state", dispatch._State()))
        stack.enter_context(_Mode(allow_non_fake_inputs=True))
        functions = stack.enter_context(_Functions())
        clear = torch.clear_autocast_cache
        stack.enter_context(mock.patch.object(torch, "clear_autocast_cache", lambda: (clear(), functions.forget())))
        yield cuda


def _converted(module: torch.nn.Module, convert: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` with new parameters: fake ones cannot be changed into others."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and (new := convert(p.detach())) is not p:
                part._parameters[name] = torch.nn.Parameter(new.detach(), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = b if b is None else convert(b)
    return module


def _copied(tensor: torch.Tensor, memo: dict) -> torch.Tensor:
    """`__deepcopy__` of tensors without memory: torch's own copies bytes that are not there."""
    made = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        made = torch.nn.Parameter(made, tensor.requires_grad)
    memo[id(tensor)] = made
    return made


class Operators(TorchDispatchMode):
    """Within: counts the ATen operators that would launch something on the device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, out = str(func).split(".")[1], func(*args, **(kwargs or {}))
        on_host = isinstance(out, torch.Tensor) and out.device.type == "cpu"
        if name not in _SILENT and not on_host:
            self.counts[name] += 1
        return out
