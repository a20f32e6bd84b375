"""The first batches of every loader against those of the first that is there."""

from functools import partial
from itertools import islice

import torch
from torch import Tensor

from apart_fast.check.drawn import PADDING, drawn_split
from apart_fast.check.lines import Given, Line, attempt, judged
from apart_fast.check.packages import PARTS
from apart_fast.loaders import LOADERS, Batch, Split, make_loader

IMAGES, BATCH, BATCHES = 96, 32, 2
REFERENCE = "resident"


def check(given: Given) -> list[Line]:
    """A line for each of `LOADERS`."""
    split = drawn_split(IMAGES, cache=given.folder)
    reference = _first_batches(REFERENCE, split, given)

    def look(kind: str) -> Line:
        if kind in PARTS and not PARTS[kind].there():
            return Line(kind, "missing", PARTS[kind].bring)
        mine = reference if kind == REFERENCE else _first_batches(kind, split, given)
        return _compare(kind, mine, reference, split)

    kinds = [REFERENCE, *(kind for kind in LOADERS if kind != REFERENCE)]
    return [attempt(kind, partial(look, kind)) for kind in kinds]


def _first_batches(kind: str, split: Split, given: Given) -> list[list[Tensor]]:
    options = dict(batch_size=BATCH, seed=1, device=given.device, padding=PADDING, flip=True, progress=False)
    with make_loader(kind, split, **options) as loader:
        batches = loader.epoch(0)
        found = [_contents(batch) for batch in islice(batches, BATCHES)]
        batches.close()
    return found


def _contents(batch: Batch) -> list[Tensor]:
    assert batch.indices is not None
    parts = (batch.images[batch.rows], batch.labels, batch.indices, batch.offsets, batch.flips)
    return [t.cpu().clone() for t in parts]


def _compare(kind: str, mine: list[list[Tensor]], reference: list[list[Tensor]], split: Split) -> Line:
    for images, labels, indices, _, _ in mine:
        if not torch.equal(images, split.images[indices]) or not torch.equal(labels, split.labels[indices]):
            return judged(kind, False, "other images or labels than those of the data")
    names = ("images", "labels", "indices", "offsets", "flips")
    unequal = {
        name
        for a, b in zip(mine, reference, strict=True)
        for name, x, y in zip(names, a, b, strict=True)
        if not torch.equal(x, y)
    }
    if unequal:
        return judged(kind, False, f"other {', '.join(sorted(unequal))} than {REFERENCE}")
    text = "its images and labels are those of the data" if kind == REFERENCE else f"the same batches as {REFERENCE}"
    return judged(kind, True, text)
