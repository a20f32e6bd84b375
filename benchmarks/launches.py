"""Counts the operators and kernels that a training step of PreActResNet-18 calls, on a CUDA device that does nothing.

python -m benchmarks.launches [--out FOLDER]

Needs no GPU and says nothing of speed. An operator over lists (`_foreach_*`) counts once, though a GPU may need more
launches for long lists; the casts of autocast are those of a stand-in (`tests/cuda_free/fake_cuda.py`), and the `copy_`
of weight gradients into channels-last are its own: cuDNN gives them so.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch

from apart_fast import Apart, build_model
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch
from apart_fast.step.optimizer import SGD
from apart_fast.training.average import WeightAverage
from apart_fast.training.totals import Totals
from apart_fast.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "cuda_free"))
from fake_cuda import CUDA, Operators, fake_cuda  # noqa: E402

BATCH, EXAMPLES = 128, 50_000
CASES = {
    "bfloat16": dict(amp=torch.bfloat16, ema=False),
    "bfloat16, EMA": dict(amp=torch.bfloat16, ema=True),
    "float16, EMA": dict(amp=torch.float16, ema=True),
    "float32": dict(amp=None, ema=False),
}


def count(amp: torch.dtype | None, ema: bool) -> Counter[str]:
    """Calls by name in the device's part of one step of APART, as while a CUDA graph is captured."""
    with fake_cuda() as cuda:
        with CUDA:
            model = build_model("preact_resnet18", num_classes=10)
        scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
        apart = Apart(model, EXAMPLES, (32, 32, 3), amp=amp, scaler=scaler)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        average = WeightAverage(model, 0.999) if ema else None
        if average is not None:
            average.follow(optimizer)
        parts = SimpleNamespace(
            apart=apart, optimizer=optimizer, scaler=scaler, average=average, totals=Totals(CUDA), model=model
        )
        rows, flips = (torch.zeros(BATCH, dtype=dtype, device=CUDA) for dtype in (torch.int64, torch.bool))
        images = torch.zeros(EXAMPLES, 32, 32, 3, dtype=torch.uint8, device=CUDA)
        batch = Batch(images, rows, Crops(rows, rows, rows[:, None].repeat(1, 2), flips), resident=True)
        Trainer._device_step(parts, batch)  # type: ignore[arg-type]  # state that comes to be in the first step
        cuda.launches.clear()
        with cuda.capture(), Operators() as operators:
            Trainer._device_step(parts, batch)  # type: ignore[arg-type]
        return operators.counts + Counter({f"{name} (Triton)": n for name, n in cuda.launches.items()})


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown: a row for each name, the most frequent first, a column for each case."""
    names = sorted({name for column in counts.values() for name in column})
    names.sort(key=lambda name: -max(column[name] for column in counts.values()))
    rows = [["all", *(str(sum(column.values())) for column in counts.values())]]
    rows += [[f"`{name}`", *(str(column[name]) for column in counts.values())] for name in names]
    lines = [["call", *counts], ["---"] * (1 + len(counts)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Print the table, and with --out write it and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=lambda word: Path(word).expanduser(), help="folder for table.md and counts.json")
    arguments = parser.parse_args()
    counts = {name: count(**case) for name, case in CASES.items()}
    text = table(counts)
    print(text)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        head = (
            "Calls in one APART step of PreActResNet-18, batch 128, on a CUDA device that does nothing: no speed.\n\n"
        )
        command = f"`python -m benchmarks.launches --out {arguments.out}`, torch {torch.__version__}\n\n"
        (arguments.out / "table.md").write_text(head + command + text)
        (arguments.out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
