"""A folder for RobustBench: the network as plain torch, its weights, a script that calls `benchmark()`, and the JSON of
model_info/. torch alone opens the network, for AutoAttack's own code too."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import apart_fast
from apart_fast.export.card_page import card_page
from apart_fast.export.figures import figures
from apart_fast.export.opening import SOURCE, open_source
from apart_fast.export.source import network_source
from apart_fast.export.stored import Stored
from apart_fast.files import to_json
from apart_fast.units import eps_words

WEIGHTS = "weights.pt"
BENCHMARKS = {"cifar10": "cifar10", "cifar100": "cifar100"}  # data sets of RobustBench that are trained on here
WHOLE = 10_000  # test images of these
THREAT = "Linf"

_SCRIPT = '''\
"""Judge the network with RobustBench (pip install robustbench) and write the figures into its JSON.

    python benchmark.py [images]
"""

import json
import sys
from pathlib import Path

import torch
from network import load
from robustbench.eval import benchmark

HERE = Path(__file__).resolve().parent
INFO = HERE / {info}

images = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# not to_disk: that would write a JSON without the other fields
clean, robust = benchmark(
    load(device=device), n_examples=images, dataset={dataset}, threat_model={threat}, eps={eps!r}, device=device
)
info = json.loads(INFO.read_text())
info["clean_acc"], info["autoattack_acc"] = f"{{100 * clean:.2f}}", f"{{100 * robust:.2f}}"
INFO.write_text(json.dumps(info, indent=2) + "\\n")
print(INFO)
'''

_USE = """\
With torch alone, in this folder:

```python
import torch
from network import CLASSES, load

network = load()  # a torch.nn.Module in eval mode
logits = network(torch.rand(1, {channels}, {height}, {width}))  # pixels in [0, 1]; normalisation is inside
```

AutoAttack's own code on images `x` (float32 [N, {channels}, {height}, {width}] in [0, 1]) and labels `y` (int64 [N]):

```python
from pyautoattack import AutoAttack

adversary = AutoAttack(network, norm="Linf", eps={eps}, version="standard", device="cpu")
x_adversarial, y_adversarial = adversary.run_standard_evaluation(x, y, batch_size=128)
```

{benchmark}
"""
_BENCHMARK = """\
`python benchmark.py` calls RobustBench's `benchmark()` and writes `clean_acc` and `autoattack_acc` into
`{info}`. For the leaderboard: fill in `link`, `name`, `authors` and `venue` there, rename it (and `weights.pt`) to
`<Name><Year><FirstWordOfTheTitle>`, and add `network.py` to `robustbench/model_zoo/architectures/` with an entry
`{{"model": make, "gdrive_id": ...}}` in `robustbench/model_zoo/{dataset}.py`."""
_NO_BENCHMARK = (
    "RobustBench's `benchmark()` has no data set {dataset}: its leaderboards are of cifar10, cifar100 and imagenet."
)


def contents(stored: Stored, licence: str) -> dict[str, bytes]:
    """The files of the folder.

    Raises:
        UserError: the weights are of another architecture or dtype.
    """
    stored.plain()  # refuses other weights
    weights = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in stored.weights.items()}
    memory = io.BytesIO()
    torch.save(weights, memory)
    version: str = apart_fast.__version__
    source = network_source(stored.description, stored.classes, stored.title, version, WEIGHTS)
    made = {WEIGHTS: memory.getvalue(), SOURCE: source.encode()}
    info, eps = model_info(stored)
    dataset, (height, width, channels) = BENCHMARKS.get(stored.dataset), stored.image_shape
    benchmark = _NO_BENCHMARK.format(dataset=ascii(stored.public_dataset))
    if dataset is None:
        made["model_info.json"] = to_json(info).encode()
    else:
        file = f"model_info/{dataset}/{THREAT}/{name_of(stored)}.json"
        script = _SCRIPT.format(info=ascii(file), dataset=ascii(dataset), threat=ascii(THREAT), eps=eps)
        made |= {file: to_json(info).encode(), "benchmark.py": script.encode()}
        benchmark = _BENCHMARK.format(info=file, dataset=dataset)
    use = _USE.format(
        channels=channels, height=height, width=width, eps=eps_words(eps).replace("/", " / "), benchmark=benchmark
    )
    return {**made, "README.md": card_page(stored, licence, use, tag="robustbench").encode()}


def name_of(stored: Stored) -> str:
    """A name for the model zoo, of letters that a file may have."""
    words = f"{stored.method or 'trained'}_{stored.description['name']}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "_" for c in words)


def model_info(stored: Stored) -> tuple[dict[str, Any], float]:
    """What a JSON of RobustBench's model_info/ holds, and eps. null: what only the authors know, or was not judged on
    the whole test set."""
    least = WHOLE if stored.dataset in BENCHMARKS else 1
    found = [figure for figure in figures(stored.public_card) if figure.n >= least and not figure.caution]
    radii = [figure.eps for figure in found if figure.attack != "clean"]
    eps = 8 / 255 if stored.dataset in BENCHMARKS or not radii else radii[-1]  # theirs, whatever else was judged
    of = {
        figure.attack: f"{100 * figure.accuracy:.2f}"
        for figure in found
        if figure.attack == "clean" or figure.eps == eps
    }
    training = stored.public_card.get("training")
    known = isinstance(training, dict) and training.get("init_from", "unknown") is None
    additional = False if known else None  # weights that it began with may have seen other data
    pgd = [figure.accuracy for figure in found if figure.attack.startswith("pgd") and figure.eps == eps]
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": additional,
        "number_forward_passes": 1,
        "dataset": stored.public_dataset,
        "venue": None,
        "architecture": stored.description["name"],
        "eps": eps_words(eps),
        "clean_acc": of.get("clean"),
        "reported": of.get("autoattack", f"{100 * min(pgd):.2f}" if pgd else None),
        "autoattack_acc": of.get("autoattack"),
    }, eps


def reopen(place: Path) -> Callable[[Tensor], Tensor]:
    """From pixels [B, C, H, W] to logits, by the folder alone."""
    return open_source(place)
