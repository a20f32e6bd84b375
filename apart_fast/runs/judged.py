"""Whether an evaluation is of a network's weights and data: a file's name does not tell, for runs go on."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import Evaluation, read_if_there
from apart_fast.runs.schema import misfit

Weights = Mapping[str, Tensor]


def digest(weights: Weights) -> str:
    """32 hexadecimal digits (BLAKE2b) over names, dtypes, shapes and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name}\0{plain.dtype}\0{list(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(uint8).numpy().data)
    return found.hexdigest()


def fitting(
    folder: RunFolder, networks: Sequence[Weights], dataset: str, known: object = None, *, of: str | None = None
) -> dict[str, Any] | None:
    """evaluation.json of a run, or else an evaluation that is `known`, if it is of one of the networks, judged on
    their data set; None where none is.

    Args:
        of: name of the networks' file, of whose evaluations a warning says that they are left out; None: of all.

    Raises:
        UserError: evaluation.json is damaged.
    """
    judged = read_if_there(folder.path / "evaluation.json", Evaluation, "make it again, or remove it")
    found = [one for one in (judged, known) if isinstance(one, dict) and one and misfit(one, Evaluation) is None]
    digests = {digest(weights) for weights in networks} if found else set()
    whys = [_unlike(one, digests, dataset) for one in found]
    if None in whys:
        return found[whys.index(None)]
    if found and of in (None, name := Path(str(found[0].get("checkpoint", ""))).name):
        words = f"an evaluation of {name} in {folder.path} {whys[0]}: its figures are left out"
        warnings.warn(f"{words}; to have some, evaluate again", stacklevel=3)
    return None


def _unlike(judged: dict[str, Any], digests: set[str], dataset: str) -> str | None:
    """Why an evaluation is of none of these weights, or of other data; None: it is of one, and of the data."""
    if "weights" not in judged:
        return "was written by a version that did not say of which weights it is"
    if judged["weights"] not in digests:
        return "is of other weights"
    return None if judged.get("dataset") == dataset else f"was made on other data ({judged.get('dataset')})"
