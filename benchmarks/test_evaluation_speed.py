"""PGD-20: `evaluate` against a plain evaluation, and against the cost of an APART epoch."""

from dataclasses import replace

import pytest
import torch

from apart_fast import evaluate
from apart_fast.evaluation.judge import reproducible
from apart_fast.measure.interleave import interleave
from benchmarks.baselines import plain_evaluation
from benchmarks.conftest import Rival
from benchmarks.evaluations import train_small
from benchmarks.steps import LOW_PRECISION, engine_step, make_problem, settings

CUDA = torch.cuda.is_available()
IMAGES, WIDTH, BATCH, ROUNDS = (10_000, 1.0, 500, 3) if CUDA else (128, 0.25, 128, 3)
EPS, STEPS = 8 / 255, 20
EPOCH = "APART epoch of 50,000"
ROWS = {
    "pgd-20": (Rival("plain pgd-20"),),
    "plain pgd-20": (),
    "pgd-20 of 10,000": (Rival(EPOCH),),
    "plain pgd-20 of 10,000": (Rival(EPOCH),),
}
if LOW_PRECISION:
    ROWS["pgd-20 bfloat16"] = (Rival("plain pgd-20"),)
    ROWS["pgd-20 bfloat16 of 10,000"] = (Rival(EPOCH, target=1.0),)


@pytest.fixture(scope="module")
def evaluations():
    device = "cuda" if CUDA else "cpu"
    judged = train_small(IMAGES, WIDTH, device)
    setting = replace(settings()[0], width=WIDTH)

    def ours(amp: torch.dtype | None = None) -> int:
        report = evaluate(
            judged.model, judged.images, judged.labels, eps=EPS, attacks=[f"pgd-{STEPS}"], batch_size=BATCH,
            device=device, amp=amp, progress=False,
        )  # fmt: skip
        return report.attacks[f"pgd-{STEPS}"].correct

    @reproducible()  # the same precision for both
    def plain() -> int:
        return plain_evaluation(judged.model, judged.images, judged.labels, eps=EPS, steps=STEPS, batch_size=BATCH)

    check(ours(), plain(), evaluate(judged.model, judged.images, judged.labels, attacks=["clean"], progress=False))
    runs = {"pgd-20": ours, "plain pgd-20": plain}
    if LOW_PRECISION:
        runs["pgd-20 bfloat16"] = lambda: ours(torch.bfloat16)
    step = engine_step(make_problem(setting), "apart")
    timings = interleave(runs | {"apart step": step}, rounds=ROUNDS, warm_up=5 if CUDA else 1, device=device)
    for name in runs:
        timings = timings.with_sum(f"{name} of 10,000", {name: 10_000 / IMAGES})
    return timings.with_sum(EPOCH, {"apart step": 50_000 / setting.batch})


def check(ours: int, plain: int, clean) -> None:
    """Both find nearly the same robust images (theirs starts elsewhere and looks at its last point only)."""
    right = clean.attacks["clean"].correct
    assert 0.5 * IMAGES < right and 0.05 * IMAGES < ours < 0.95 * right, (
        "the network is no test: nothing falls or holds"
    )
    assert abs(ours - plain) <= 0.02 * IMAGES


@pytest.mark.parametrize("name", ROWS)
def test_evaluation(evaluations, name, record):
    group = f"evaluation, {IMAGES:,} images, width {round(64 * WIDTH)}, {'cuda' if CUDA else 'cpu'}"
    record(evaluations, name, *ROWS[name], group=group)
