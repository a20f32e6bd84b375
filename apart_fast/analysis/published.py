"""The published curves (arXiv 2010.08034), read off its figures."""

import json
from pathlib import Path

_FILE = Path(__file__).parent / "published.json"


def published(name: str) -> dict:
    """An entry of published.json: "fgsm_curve" or "pgd_curve", lists over the epochs."""
    return json.loads(_FILE.read_text())[name]
