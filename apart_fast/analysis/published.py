"""The published curves (arXiv 2010.08034), read off its figures."""

import json
from pathlib import Path

_FILE = Path(__file__).parent / "published.json"


def comparable(dataset: str, eps: float) -> bool:
    """Whether the published curves are of this data set and radius: CIFAR-10, 8/255 (or their 0.031)."""
    return dataset == "cifar10" and abs(eps - 8 / 255) <= 1e-3


def published(name: str) -> dict:
    """An entry of published.json: "fgsm_curve" or "pgd_curve", lists over the epochs."""
    return json.loads(_FILE.read_text())[name]
