"""Precision flags: set for a while and then as they were, whichever of torch's interfaces had set them."""

import subprocess
import sys

import pytest
import torch

from apart_fast import build_model, evaluate
from apart_fast.evaluation.judge import reproducible
from apart_fast.precision import float32_as

WAYS = {
    "by default": "pass",
    "all at once": "torch.backends.fp32_precision = 'tf32'",
    "products": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "convolutions": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "older, products": "torch.set_float32_matmul_precision('high')",
    "older, convolutions": "torch.backends.cudnn.allow_tf32 = False",
}
READ = """
import torch
def read():
    backends, values = torch.backends, []
    for value in (
        lambda: backends.cudnn.conv.fp32_precision, lambda: backends.cudnn.rnn.fp32_precision,
        lambda: backends.cuda.matmul.fp32_precision, lambda: backends.fp32_precision,
        torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32,
        lambda: (backends.cudnn.deterministic, backends.cudnn.benchmark),
    ):
        try:
            values.append(value())
        except RuntimeError as error:
            values.append(str(error)[:30])
    return values
"""
USE = """
from apart_fast import build_model, evaluate
from apart_fast.measure import arithmetic
arithmetic.MATRIX_SIZE["cpu"], arithmetic.PEAK_SECONDS = 32, 0
before = read()
images = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8)
model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.0625)
evaluate(model, images, torch.arange(4), attacks=("clean", "pgd-1"), progress=False)
arithmetic.matrix_peak(torch.device("cpu"), torch.float32)
assert read() == before, (before, read())
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_program_finds_its_precision_as_it_set_it(way):
    """In a process of its own: torch remembers for good which interface was used."""
    done = subprocess.run([sys.executable, "-c", READ + WAYS[way] + USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_within_all_of_it_is_full_and_afterwards_not():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    with float32_as("ieee"):
        assert conv.fp32_precision == matmul.fp32_precision == "ieee"
        with float32_as("tf32"):
            assert conv.fp32_precision == matmul.fp32_precision == "tf32"
        assert conv.fp32_precision == "ieee"
    with pytest.raises(ZeroDivisionError), reproducible():
        raise ZeroDivisionError
    assert (conv.fp32_precision, matmul.fp32_precision) == before


def test_evaluation_is_in_full_precision():
    seen = []
    model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.0625)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    images = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8)
    evaluate(model, images, torch.arange(4), attacks=("clean",), progress=False)
    assert set(seen) == {"ieee"}
