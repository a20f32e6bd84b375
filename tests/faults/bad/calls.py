"""Calls of the library that make no sense: each must raise an error that the library has written itself."""

import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.bad.site import Input, Site, Words
from faults.forking import ROOT

DELIBERATE = ("UserError", "ValueError", "TypeError", "IndexError")
OURS = tuple(str(ROOT / folder) for folder in ("apart_fast", "kernels", "loaders"))


def attempt(name: str) -> None:
    """Make the call `name`. A clear error becomes a line and exit code 2, as on the command line; any other stays.

    Clear is one line, of a common type, raised in a file of the library, not in one that it calls.
    """
    try:
        CALLS[name](Things())
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        raised = Path(frames[-1].filename).resolve()
        clear = type(error).__name__ in DELIBERATE and str(raised).startswith(OURS) and "\n" not in str(error)
        if not clear or len(str(error)) < 12:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Things:
    """What calls are made with; torch and the library are imported here only."""

    def __init__(self) -> None:
        import torch

        import apart_fast

        torch.manual_seed(0)
        self.lib, self.torch, self.nn = apart_fast, torch, torch.nn
        self.images = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8)
        self.labels, self.rows = torch.arange(12) % 3, torch.arange(12)
        conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 3))

    def apart(self, **changes: object) -> object:
        given: dict = dict(model=self.net, num_examples=12, image_shape=(8, 8, 3), padding=1, points=["1"])
        return self.lib.Apart(**{**given, **changes})

    def step(self, apart: object = None, **changes: object) -> object:
        given: dict = dict(images=self.images, labels=self.labels, indices=self.rows)
        return (apart or self.apart()).step(**{**given, **changes})  # type: ignore[union-attr]

    def evaluate(self, **changes: object) -> object:
        given: dict = dict(
            model=self.net, images=self.images, labels=self.labels, eps="8/255", attacks=("clean", "pgd-2")
        )
        return self.lib.evaluate(**{**given, **changes}, progress=False)

    def net_with(self, last: Callable) -> object:
        """The network with a function of its logits as its last layer."""
        nn = self.nn

        class Last(nn.Module):
            def forward(self, x: object) -> object:
                return last(x)

        return nn.Sequential(*self.net, Last())


def _frozen(t: Things) -> object:
    t.net.requires_grad_(False)
    return t.step()


def _eval_mode(t: Things) -> object:
    t.net.eval()
    return t.step()


NAN = float("nan")
CALLS: dict[str, Callable[[Things], object]] = {
    "num_examples=0": lambda t: t.apart(num_examples=0),
    "num_examples=-1": lambda t: t.apart(num_examples=-1),
    "num_examples=2.5": lambda t: t.apart(num_examples=2.5),
    "num_examples='12'": lambda t: t.apart(num_examples="12"),
    "num_examples=10**15": lambda t: t.apart(num_examples=10**15),
    "image_shape of two": lambda t: t.apart(image_shape=(8, 8)),
    "image_shape=(8, 8, 0)": lambda t: t.apart(image_shape=(8, 8, 0)),
    "image_shape=(-8, 8, 3)": lambda t: t.apart(image_shape=(-8, 8, 3)),
    "image_shape=None": lambda t: t.apart(image_shape=None),
    "image_shape=(3, 8, 8)": lambda t: t.apart(image_shape=(3, 8, 8)),
    "padding=-1": lambda t: t.apart(padding=-1),
    "padding=1.5": lambda t: t.apart(padding=1.5),
    "padding=10**6": lambda t: t.apart(padding=10**6),
    "eps=8": lambda t: t.apart(eps=8),
    "eps=nan": lambda t: t.apart(eps=NAN),
    "eps=None": lambda t: t.apart(eps=None),
    "eps=[0.1]": lambda t: t.apart(eps=[0.1]),
    "eps='1e-400'": lambda t: t.apart(eps="1e-400"),
    "method='apartt'": lambda t: t.apart(method="apartt"),
    "method=None": lambda t: t.apart(method=None),
    "method=''": lambda t: t.apart(method=""),
    "method='pgd-0'": lambda t: t.apart(method="pgd-0"),
    "points='1'": lambda t: t.apart(points="x"),
    "points=['9']": lambda t: t.apart(points=["9"]),
    "points=[1]": lambda t: t.apart(points=[1]),
    "amp='bfloat16'": lambda t: t.apart(amp="bfloat16"),
    "amp=True": lambda t: t.apart(amp=True),
    "amp=torch.int8": lambda t: t.apart(amp=t.torch.int8),
    "amp=torch.float16 without a scaler": lambda t: t.apart(amp=t.torch.float16),
    "label_smoothing=-1": lambda t: t.apart(label_smoothing=-1),
    "label_smoothing=1.5": lambda t: t.apart(label_smoothing=1.5),
    "label_smoothing=nan": lambda t: t.apart(label_smoothing=NAN),
    "eta=nan": lambda t: t.apart(eta=NAN),
    "eta=-1": lambda t: t.apart(eta=-1.0),
    "eta=inf": lambda t: t.apart(eta=float("inf")),
    "decay=nan": lambda t: t.apart(decay=NAN),
    "decay=-1": lambda t: t.apart(decay=-1.0),
    "omega_dtype=torch.int64": lambda t: t.apart(omega_dtype=t.torch.int64),
    "omega_dtype='float16'": lambda t: t.apart(omega_dtype="float16"),
    "omega_device='moon'": lambda t: t.apart(omega_device="moon"),
    "omega_device='disk', a folder that is not there": lambda t: t.apart(
        omega_device="disk", omega_folder="/proc/nowhere"
    ),
    "dtype=torch.float16": lambda t: t.apart(dtype=t.torch.float16),
    "dtype=torch.int32": lambda t: t.apart(dtype=t.torch.int32),
    "seed=-1": lambda t: t.apart(seed=-1),
    "seed=2**70": lambda t: t.apart(seed=2**70),
    "seed=1.5": lambda t: t.apart(seed=1.5),
    "model=None": lambda t: t.apart(model=None),
    "a model without parameters": lambda t: t.apart(model=t.nn.Flatten(), points=()),
    "a model in half precision": lambda t: t.apart(model=t.net.half()),
    "a model in bfloat16": lambda t: t.apart(model=t.net.bfloat16()),
    "a model of other channels": lambda t: t.apart(image_shape=(8, 8, 1)),
    "a model of other sizes": lambda t: t.apart(image_shape=(9, 9, 3)),
    "step: frozen parameters": _frozen,
    "step: eval mode": _eval_mode,
    "step: float images": lambda t: t.step(images=t.images.float() / 255),
    "step: images [B, C, H, W]": lambda t: t.step(images=t.images.permute(0, 3, 1, 2)),
    "step: images as numpy": lambda t: t.step(images=t.images.numpy()),
    "step: no images": lambda t: t.step(images=t.images[:0], labels=t.labels[:0], indices=t.rows[:0]),
    "step: other numbers": lambda t: t.step(labels=t.labels[:5]),
    "step: bool labels": lambda t: t.step(labels=t.labels > 0),
    "step: int32 labels": lambda t: t.step(labels=t.labels.int()),
    "step: labels one-hot": lambda t: t.step(labels=t.nn.functional.one_hot(t.labels)),
    "step: labels as a list": lambda t: t.step(labels=t.labels.tolist()),
    "step: label 3 of 3": lambda t: t.step(labels=t.labels + 1),
    "step: label -1": lambda t: t.step(labels=t.labels - 1),
    "step: labels all -100": lambda t: t.step(labels=t.labels * 0 - 100),
    "step: indices missing": lambda t: t.step(indices=None),
    "step: indices twice": lambda t: t.step(indices=t.rows // 2),
    "step: indices out of range": lambda t: t.step(indices=t.rows + 1),
    "step: indices below 0": lambda t: t.step(indices=t.rows - 1),
    "step: float indices": lambda t: t.step(indices=t.rows.float()),
    "step: offsets out of range": lambda t: t.step(offsets=t.torch.full((12, 2), 3)),
    "step: offsets of another shape": lambda t: t.step(offsets=t.torch.zeros(12, dtype=t.torch.int64)),
    "step: flips as numbers": lambda t: t.step(flips=t.rows),
    "step: rows out of range": lambda t: t.step(rows=t.rows + 1),
    "step: NaN logits": lambda t: t.evaluate(model=t.net_with(lambda x: x * NAN)),
    "set_rates(nan)": lambda t: t.apart().set_rates(eta=NAN, momentum=0.9),
    "load_state_dict({})": lambda t: t.apart().load_state_dict({}),
    "load_state_dict of another": lambda t: t.apart().load_state_dict(t.apart(num_examples=5).state_dict()),
    "evaluate: no images": lambda t: t.evaluate(images=t.images[:0], labels=t.labels[:0]),
    "evaluate: float images": lambda t: t.evaluate(images=t.images.float()),
    "evaluate: images [B, C, H, W]": lambda t: t.evaluate(images=t.images.permute(0, 3, 1, 2)),
    "evaluate: fewer labels": lambda t: t.evaluate(labels=t.labels[:3]),
    "evaluate: label 3 of 3": lambda t: t.evaluate(labels=t.labels + 1),
    "evaluate: float labels": lambda t: t.evaluate(labels=t.labels.float()),
    "evaluate: attacks=()": lambda t: t.evaluate(attacks=()),
    "evaluate: attacks='clean'": lambda t: t.evaluate(attacks="clean"),
    "evaluate: attacks=('x',)": lambda t: t.evaluate(attacks=("x",)),
    "evaluate: eps=8": lambda t: t.evaluate(eps=8),
    "evaluate: batch_size=0": lambda t: t.evaluate(batch_size=0),
    "evaluate: restarts=0": lambda t: t.evaluate(restarts=0),
    "evaluate: seed=-1": lambda t: t.evaluate(seed=-1),
    "evaluate: seed=2**70": lambda t: t.evaluate(seed=2**70),
    "evaluate: amp='bfloat16'": lambda t: t.evaluate(amp="bfloat16"),
    "evaluate: device='abacus'": lambda t: t.evaluate(device="abacus"),
    "evaluate: logits in a dict": lambda t: t.evaluate(model=t.net_with(lambda x: {"logits": x})),
    "evaluate: logits [B, C, H, W]": lambda t: t.evaluate(
        model=t.net_with(lambda x: x[:, :, None, None].expand(-1, -1, 2, 2))
    ),
    "evaluate: one logit": lambda t: t.evaluate(model=t.net_with(lambda x: x[:, :1])),
    "evaluate: logits of one image": lambda t: t.evaluate(model=t.net_with(lambda x: x[:1])),
    "evaluate: no tensor": lambda t: t.evaluate(model=t.net_with(lambda x: None)),
    "evaluate: logits as classes": lambda t: t.evaluate(model=t.net_with(lambda x: x.argmax(1))),
    "build_model: no name": lambda t: t.lib.build_model("", num_classes=3),
    "build_model: one class": lambda t: t.lib.build_model("preact_resnet18", num_classes=1),
    "build_model: width=0": lambda t: t.lib.build_model("preact_resnet18", num_classes=3, width=0),
    "build_model: width=nan": lambda t: t.lib.build_model("preact_resnet18", num_classes=3, width=NAN),
    "build_model: width=1e6": lambda t: t.lib.build_model("preact_resnet18", num_classes=3, width=1e6),
    "build_model: width='1'": lambda t: t.lib.build_model("preact_resnet18", num_classes=3, width="1"),
    "build_model: images of 2 x 2": lambda t: t.lib.build_model("preact_resnet18", num_classes=3, image_size=(2, 2)),
    "build_model: two channels' mean for three": lambda t: t.lib.build_model(
        "preact_resnet18", num_classes=3, normalize=((0.5, 0.5), (0.5, 0.5))
    ),
    "build_model: a deviation of 0": lambda t: t.lib.build_model(
        "preact_resnet18", num_classes=3, normalize=((0.5,) * 3, (0.0,) * 3)
    ),
    "parse_eps('')": lambda t: t.lib.parse_eps(""),
    "parse_eps(None)": lambda t: t.lib.parse_eps(None),
    "parse_eps(True)": lambda t: t.lib.parse_eps(True),
    "get_method(3)": lambda t: t.lib.get_method(3),
    "scaled_eta: no steps": lambda t: t.lib.scaled_eta(5e-8, 0),
    "Triangle(0)": lambda t: t.lib.Triangle(0).at(3),
    "Triangle(-5)": lambda t: t.lib.Triangle(-5).at(3),
}


def inputs() -> Iterator[Input]:
    for name in CALLS:
        yield Input(f"a call: {name}", "calls of evaluate" if "evaluate" in name else "calls", partial(_words, name))


def _words(name: str, site: Site) -> Words:
    return ["call", "faults.bad.calls:attempt", name]
