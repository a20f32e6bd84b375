"""A folder as the Hugging Face hub shows it: weights, config.json, the card, and the architecture's source."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import apart_fast
from apart_fast.export.card_page import card_page
from apart_fast.export.find import WEIGHTS
from apart_fast.export.opening import SOURCE, open_source
from apart_fast.export.source import network_source
from apart_fast.export.stored import Stored
from apart_fast.files import to_json
from apart_fast.runs.states import EXPORTED

_USE = """\
With torch and safetensors alone, in this folder:

```python
import torch
from network import CLASSES, load

network = load()
logits = network(torch.rand(1, {channels}, {height}, {width}))  # pixels in [0, 1]; normalisation is inside
print(CLASSES[logits.argmax(1)])
```

With [apart_fast](https://arxiv.org/abs/2010.08034) (`apart-fast predict . PICTURE...` too):

```python
import apart_fast

network = apart_fast.load(".")
print(network.classes, network.card["evaluation"] if network.card else None)
```
"""


def contents(stored: Stored, licence: str) -> dict[str, bytes]:
    """The files of the folder.

    Raises:
        UserError: the weights are of another architecture or dtype.
    """
    from safetensors.torch import save

    stored.plain()  # refuses other weights
    weights = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in stored.weights.items()}
    height, width, channels = stored.image_shape
    version: str = apart_fast.__version__
    source = network_source(stored.description, stored.classes, stored.title, version, WEIGHTS)
    config = {
        "model_type": EXPORTED,
        "architectures": [stored.description["name"]],
        "architecture": stored.description,
        "num_labels": len(stored.classes),
        "id2label": dict(enumerate(stored.classes)),
        "label2id": {name: label for label, name in enumerate(stored.classes)},
        "input": "float32 pixels in [0, 1], [B, C, H, W]; normalisation is inside",
        "image_size": [height, width],
        "num_channels": channels,
        "resizing": stored.reading.resizing,
        "dataset": stored.public_dataset,
        "method": stored.method,
        "epoch": stored.epoch,
        "weights": stored.what,
        "license": licence,
        "apart_fast_version": version,
        "card": stored.public_card,
    }
    use = _USE.format(channels=channels, height=height, width=width)
    return {
        WEIGHTS: save(weights, metadata={EXPORTED: stored.about(licence)}),
        SOURCE: source.encode(),
        "config.json": to_json(config).encode(),
        "README.md": card_page(stored, licence, use).encode(),
    }


def reopen(place: Path) -> Callable[[Tensor], Tensor]:
    """From pixels [B, C, H, W] to logits, by the folder alone."""
    return open_source(place)
