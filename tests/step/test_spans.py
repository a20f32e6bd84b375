"""The parts that a step names while it runs."""

from contextlib import contextmanager

import pytest
import torch

from apart_fast import Apart, build_model
from apart_fast.step import spans
from apart_fast.step.spans import SPANS, listening, span


def heard_in(method, **settings):
    """The spans of one step, in their order."""
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.0625)
    apart = Apart(model, 6, (12, 12, 3), padding=2, method=method, **settings)
    images = torch.randint(0, 256, (6, 12, 12, 3), dtype=torch.uint8)
    heard, depth = [], []

    @contextmanager
    def listen(name):
        if not depth:
            heard.append(name)
        depth.append(name)
        yield
        assert depth.pop() == name

    with listening(listen):
        apart.step(images, torch.arange(6) % 4, torch.arange(6))
    return [name for i, name in enumerate(heard) if i == 0 or heard[i - 1] != name]


@pytest.mark.parametrize(("method", "steps"), [("standard", 0), ("fgsm", 1), ("pgd-3", 3), ("atta-2", 2), ("apart", 1)])
def test_a_step_reads_as_its_spans(method, steps):
    moves = [spans.PASS_1, spans.MOVE] * steps
    assert heard_in(method) == [spans.START, *moves, spans.PASS_2, spans.REMEMBER]


def test_rows_on_their_way_belong_to_start_and_remember(tmp_path):
    assert heard_in("apart", omega_device="disk", omega_folder=tmp_path) == [
        *(spans.START, spans.PASS_1, spans.MOVE, spans.PASS_2, spans.REMEMBER)
    ]


def test_nobody_listens_afterwards():
    heard = []

    @contextmanager
    def listen(name):
        heard.append(name)
        yield

    with pytest.raises(ZeroDivisionError), listening(listen), span("start"):
        raise ZeroDivisionError
    with span("move"):
        pass
    assert heard == ["start"] and len(set(SPANS)) == len(SPANS)
