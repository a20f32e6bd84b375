"""Whether a change leaves every bit of the training as it was.

    python tests/same_bits.py --out before.json          # on the code before
    python tests/same_bits.py --out after.json --compare before.json

30 steps of every method with every loader, in float32 and bfloat16, from the command line as a user has them: a digest
of each tensor of the last checkpoint (weights, omega, step sizes, velocities, random states).
"""

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

METHODS = ("standard", "fgsm", "fgsm-rs", "n-fgsm", "pgd-3", "atta-1", "fgsm+", "apart", "apart+mse", "apart+js")
METHODS += ("fgsm-pgi", "fgsm-mep-cs", "fgsm-rs-cs", "fgsm-uap", "fgsm-cuap", "liet", "trades-2", "awp-pgd-2")
LOADERS = ("resident", "ffcv", "dataloader")
PRECISIONS = ("float32", "bfloat16")
FURTHER = (  # apart with the resident loader and these flags besides
    ("--amp", "--amp-dtype", "float16"),
    ("--ema", "0.99", "--label-smoothing", "0.1"),
    ("--omega-device", "disk"),
    ("--omega-dtype", "int8"),
    ("--model", "wide_resnet28_10", "--width", "0.025"),
    ("--normalize",),
)
FLAGS = """--dataset folder --width 0.25 --batch-size 16 --val-images 20 --probe-images 10 --epochs 5 --cycle 5
    --val-every 5 --lr 0.05 --device cpu --threads 1 --no-progress --no-test""".split()


def draw(root: Path) -> None:
    """112 training images (7 batches of 16 less the validation's 20: 6 steps an epoch, the last one partial)."""
    random = np.random.default_rng(0)
    for part, count in (("train", 29), ("test", 4)):
        for label in range(4):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (16, 16, 3)) + 30 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")


def digests(value: object, name: str = "") -> dict[str, str]:
    """name -> digest of every tensor in nested lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        data = (
            str(value.dtype).encode()
            + repr(tuple(value.shape)).encode()
            + value.reshape(-1).view(torch.uint8).numpy().tobytes()
        )
        return {name: hashlib.sha256(data).hexdigest()[:16]}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {}
    for key, item in items:
        found |= digests(item, f"{name}.{key}" if name else str(key))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    from apart_fast.cli import train_command

    runs = {
        f"{m} {loader} {p}": ["--method", m, "--loader", loader, *(["--amp"] if p == "bfloat16" else [])]
        for m, loader, p in itertools.product(METHODS, LOADERS, PRECISIONS)
    }
    runs |= {"apart resident " + " ".join(flags): list(flags) for flags in FURTHER}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "data"))
        for i, (name, flags) in enumerate(runs.items()):
            out = Path(folder, f"run-{i}")
            try:
                train_command([*FLAGS, "--data-dir", f"{folder}/data", "--out", str(out), *flags])
            except SystemExit as end:
                if end.code:
                    raise
            found[name] = digests(torch.load(out / "last.pt", weights_only=True))
    options.out.write_text(json.dumps(found, indent=1))
    total = sum(map(len, found.values()))
    print(f"{len(found)} runs, {total} tensors: {options.out}")
    if options.compare:
        before = json.loads(options.compare.read_text())
        wrong = [
            f"{run}: {name}"
            for run in before | found
            for name in {**before.get(run, {}), **found.get(run, {})}
            if before.get(run, {}).get(name) != found.get(run, {}).get(name)
        ]
        print("\n".join(wrong) or f"the same bits as {options.compare}")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
