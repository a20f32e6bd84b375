"""`apart_fast.load`: from a path to a network."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from apart_fast.evaluation.checks import check_device
from apart_fast.export.stored import Stored, read_network


class Network(nn.Module):
    """What `load` says of a network, for type checkers; the network itself is of its own class.

    Attributes:
        classes: names, in the order of the logits.
        card: the model card (what card.json of a run holds); empty where there is none.
    """

    classes: list[str]
    card: dict[str, Any]


def load(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> Network:
    """A trained network in eval mode: float32 pixels in [0, 1], [B, C, H, W] of any layout, to logits [B, classes].

    It has its averaged weights where there are any. Any normalisation is inside, the names in its state_dict are those
    of the architecture, and nothing is unpickled but tensors and plain values. The global random state stays as it is.

    Args:
        path: the folder of a run (its best.pt, or else its last.pt), a best.pt or last.pt, or a safetensors folder or
            file that `apart-fast export` has written.

    Returns:
        the network, with `classes` (names, in the order of the logits) and `card` (the model card; empty where there is
        none, as beside an unfinished run).

    Raises:
        UserError: nothing there, damaged, not of this program, in half precision or quantised, or a package is not
            installed.
    """
    return attach(read_network(Path(path)), check_device(device))


def attach(stored: Stored, device: torch.device) -> Network:
    """The same for what `read_network` has read."""
    network = cast(Network, stored.network(device))
    network.classes, network.card = stored.classes, stored.card
    return network
