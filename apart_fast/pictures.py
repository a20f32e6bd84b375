"""Pictures of a run, as PNG: curves over the epochs, and what the perturbations look like."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from apart_fast import kernels
from apart_fast.attacks import predict
from apart_fast.files import atomic_path
from apart_fast.loaders.datasets import Split

# Okabe and Ito's palette: told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the format its name ends in."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)


def curves(runs: Mapping[str, list[dict]], path: Path) -> None:
    """Loss, accuracies and step sizes over the epochs; `runs`: name -> lines of metrics.jsonl."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, sizes = figure.subplots(1, 3)
    for colour, (name, records) in zip(COLOURS, runs.items(), strict=False):

        def draw(axes, key, style, label, records=records, colour=colour):
            points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=3)

        draw(loss, "loss", "-", f"{name} (perturbed)")
        draw(loss, "start_loss", ":", f"{name} (at the start)")
        draw(accuracy, "val_clean", "s--", f"{name} clean")
        draw(accuracy, "val_pgd20", "o-", f"{name} PGD-20")
        draw(accuracy, "probe_pgd10", ":", f"{name} PGD-10 probe")
        draw(sizes, "alpha", "-", f"{name} alpha")
        draw(sizes, "alpha_omega", "--", f"{name} alpha_omega")
    loss.set(title="training loss", xlabel="epoch")
    accuracy.set(title="validation accuracy", xlabel="epoch", ylim=(0, 1))
    sizes.set(title="learned step sizes", xlabel="epoch")
    for axes in (loss, accuracy, sizes):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=7)
        else:
            axes.text(0.5, 0.5, "none in this run", ha="center", transform=axes.transAxes)
    save_figure(figure, path)


def perturbations(model: nn.Module, split: Split, classes: list[str], eps: float, path: Path) -> None:
    """Images, their PGD-20 perturbations against `model` (grey: none, white and black: +-eps), and the result."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        images = split.images.to(device).float() / 255  # [N, H, W, C]
        labels = split.labels.to(device)
        attacked = images
        for _ in range(20):  # all the steps: `attacks.pgd` keeps the first image that fools
            leaf = attacked.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(predict(model, leaf), labels), leaf)
            attacked = kernels.projected_step(images, attacked, gradient, eps / 4, eps)
        said = [predict(model, x).argmax(1).tolist() for x in (images, attacked)]
    finally:
        model.train(training)
    rows = [images, (attacked - images) / (2 * eps) + 0.5, attacked]
    figure = Figure(figsize=(1.3 * len(images) + 0.8, 5), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for r, (pictures, title) in enumerate(zip(rows, ("image", "perturbation", "attacked"), strict=True)):
        for i, picture in enumerate(pictures.cpu().clamp(0, 1)):
            axes[r, i].imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            axes[r, i].set(xticks=[], yticks=[])
        axes[r, 0].set_ylabel(title)
    for i, label in enumerate(split.labels.tolist()):
        axes[0, i].set_title(classes[label], fontsize=8)
        for r, answers in ((0, said[0]), (2, said[1])):
            right = answers[i] == label
            axes[r, i].set_xlabel(
                ("said " if right else "wrong: ") + classes[answers[i]], fontsize=7, color=COLOURS[0 if right else 1]
            )
    figure.suptitle(f"PGD-20, eps {eps:.4f}; grey: no change, black and white: -eps and +eps", fontsize=9)
    save_figure(figure, path)
