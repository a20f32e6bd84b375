"""The README.md of an exported network: a model card as the Hugging Face hub shows it."""

import json
from typing import Any

from apart_fast.export.figures import Figure, figures
from apart_fast.export.stored import Stored
from apart_fast.loaders.datasets.listing import shown


def card_page(stored: Stored, licence: str, use: str, tag: str = "safetensors") -> str:
    """Markdown behind a YAML head.

    Args:
        licence: of the weights, as the hub names it.
        use: Markdown that says how the network is opened.
        tag: of the head, besides those of every network.
    """
    found, card = figures(stored.public_card), stored.public_card
    parts = [
        _head(stored, licence, tag, found),
        f"# {_text(stored.title)}\n",
        _what(stored),
        f"## How to load\n\n{use}",
        _figures(found),
        _training(card),
        _caveats(card),
        f"## Licence\n\nWeights: {licence}. `network.py`: MIT, the apart_fast authors.\n",
    ]
    return "\n".join(part for part in parts if part)


def _head(stored: Stored, licence: str, tag: str, found: list[Figure]) -> str:
    """YAML, of which JSON is a part: nothing in a name can end a line or begin an entry."""
    head: dict[str, Any] = {
        "license": licence,
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "adversarial-robustness", "apart_fast", "pytorch", tag],
    }
    hub = {"cifar10": "cifar10", "cifar100": "cifar100", "svhn": "svhn", "fashion-mnist": "fashion_mnist"}
    name = hub.get(stored.public_dataset) or stored.public_dataset.removeprefix("hf:").partition(":")[0]
    if stored.public_dataset in hub or stored.dataset == stored.public_dataset != name:
        head["datasets"] = [name]
    if found:
        head["metrics"] = ["accuracy"]
        task = {"type": "image-classification"}
        dataset = {"name": stored.public_dataset, "type": name, "split": "test"}
        metrics = [
            {"type": "accuracy", "name": f"accuracy, {figure.words}", "value": round(100 * figure.accuracy, 2)}
            for figure in found
            if not figure.caution
        ]
        if metrics:
            head["model-index"] = [
                {"name": stored.title, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
            ]
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---\n"


def _what(stored: Stored) -> str:
    height, width, channels = stored.image_shape
    names = ", ".join(_text(name) for name in stored.classes[:20])
    more = f", ... ({len(stored.classes)} in all, in config.json)" if len(stored.classes) > 20 else ""
    trained = f"Trained with {_text(stored.method)}" if stored.method else "Trained"
    return (
        f"{trained} on {_text(stored.public_dataset)}; {stored.what}, after epoch {stored.epoch}. It takes float32 "
        f"pixels in [0, 1], [B, {channels}, {height}, {width}], with any normalisation inside, and gives logits "
        f"[B, {len(stored.classes)}].{_resized(stored)}\n\nClasses: {names}{more}.\n\n"
        "For research on adversarial robustness; not a safety component.\n"
    )


def _resized(stored: Stored) -> str:
    to = stored.reading.resizing
    if to is None:
        return ""
    how = {
        "crop": "short side resized, then the middle cut out",
        "pad": "long side resized, the rest black",
        "squash": "both sides resized",
    }
    return f" Pictures were brought to {to.size}x{to.size} ({how.get(to.how, to.how)}; bilinear, antialiased)."


def _figures(found: list[Figure]) -> str:
    if not found:
        return "## Figures\n\nNone: the run had no card with figures of these weights when they were exported.\n"
    rows = "".join(
        f"| {_text(figure.words)} | {figure.accuracy:.1%} | {figure.low:.1%} to {figure.high:.1%} | {figure.n:,} |"
        f" {figure.caution} |\n"
        for figure in found
    )
    return (
        "## Figures\n\nAccuracy on test images, L-inf ball, white-box:\n\n"
        f"| under | accuracy | 95 % interval | images | |\n|---|---|---|---|---|\n{rows}"
    )


def _training(card: dict[str, Any]) -> str:
    training = card.get("training")
    if not isinstance(training, dict):
        return ""
    rows = "".join(
        f"| {_text(name)} | {_text(value)} |\n"
        for name, value in training.items()
        if isinstance(value, str | int | float) and name not in ("omega_bytes", "seconds")
    )
    return f"## Training\n\n| setting | value |\n|---|---|\n{rows}"


def _caveats(card: dict[str, Any]) -> str:
    caveats = card.get("caveats")
    lines = [_text(line) for line in caveats] if isinstance(caveats, list) else []
    return "## Caveats\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _text(value: object) -> str:
    """On one line, and without Markdown or HTML of its own."""
    return "".join(f"\\{c}" if c in r"\`*[]<>|#" else c for c in shown(str(value)))
