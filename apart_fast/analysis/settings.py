"""Every setting of the analyses; each field is a flag of `apart-fast analyze` (docstrings are its help)."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from apart_fast.errors import UserError
from apart_fast.units import check_settings, parse_eps


@dataclass
class Common:
    """What every analysis takes."""

    images: int = 1000
    """Number of test images (a fixed subset)."""
    eps: str = "8/255"
    """Radius of the L-inf ball of the attacks, a fraction of the pixel range; PGD's step is a quarter of it."""
    batch_size: int = 256
    """Images that go through a model at a time."""
    seed: int = 0
    """Of random starts and noise."""
    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    cache_dir: Path | None = None
    """Where files derived from the data go. None: .apart_fast in --data-dir."""
    download: bool = True
    """Download a missing data set."""
    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    progress: bool = True
    """Show progress bars (never shown where the output is not a terminal)."""
    unfinished: bool = False
    """Take runs that still train, or were stopped, as far as they are."""
    out: Path = Path("runs/analysis")
    """Folder for pictures (PNG and SVG) and numbers (JSON)."""

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: one line with the flag and the values it takes.
        """
        check_settings(self)
        parse_eps(self.eps)
        from apart_fast.device import pick_device  # torch: `--help` and a wrong flag do not wait for it

        pick_device(self.device)


@dataclass(kw_only=True)
class CollapseConfig(Common):
    """Robustness drop and transfer: PGD-20 accuracy over the epochs, and what one-step perturbations of each epoch's
    network do to a reference network, beside random noise of the same size.

    Transfer is always measured with FGSM, one step of eps from the test image, whatever the run was trained with: the
    remembered starts of FGSM+ and APART exist for training images only. Finished checkpoints are kept in
    collapse-cache.json in the output folder, so a stopped analysis goes on where it was.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs with kept weights, such as fgsm, fgsm+ and apart; several seeds of each are averaged."""
    reference: Path
    """Folder of a finished pgd-10 run: its last kept weights, or best.pt if it kept none, face the perturbations."""
    every: int = 1
    """Judge only every so many kept epochs; the last one is always among them."""


@dataclass(kw_only=True)
class PerturbationsConfig(Common):
    """The same images with FGSM perturbations of networks before and after collapse, side by side, and for each
    network, over all the test images (means with 95 % intervals):

    at_bound: share of pixel values moved by eps (at least 0.999 of it); the rest was clipped or has gradient zero.
    zero: share of pixel values that are not moved at all.
    like_pgd: correlation of the FGSM perturbation with the network's own PGD-20 perturbation.
    like_reference: correlation of it with the PGD-20 perturbation of the reference network.
    across, down: correlation of its signs at neighbouring pixels; near 1 for flat areas, 0 for noise, -1 for stripes.
    follows_edges: correlation, over the pixels, of the gradient's size with the image's edges (finite differences).
    no_gradient: share of the images whose gradient is not finite or zero everywhere; they say nothing of the others.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a finished run with kept weights."""
    epochs: tuple[int, ...] = ()
    """Kept epochs to compare. None given: the last one before the collapse and the last one of all; where there was no
    collapse, the middle and the last one."""
    reference: Path | None = None
    """Folder of a finished pgd-10 run to compare with: its last kept weights, or best.pt if it kept none."""
    shown: int = 8
    """Images in the picture."""

    def check(self) -> None:
        """See `Common.check`."""
        super().check()
        if parse_eps(self.eps) == 0:
            raise UserError("--eps 0 leaves no perturbation to look at: give more than 0")


@dataclass(kw_only=True)
class CurvesConfig(Common):
    """Robust accuracy over the epochs of runs: best, last and drop, with the spread over seeds.

    Without --judge nothing but the folders of the runs is read.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs; those that differ in the seed only are drawn as one curve."""
    judge: bool = False
    """Judge every kept checkpoint on test images (clean and PGD-20) instead of reading what the run recorded."""
    published: bool = False
    """Draw the published curves of APART and PGD-10 (PGD-20 accuracy, full size) behind those of the runs, and those of
    FGSM and FGSM+ behind runs of these."""


@dataclass(kw_only=True)
class GradientsConfig(Common):
    """What the perturbation generator receives over training: norms, alignment and worth of the gradients."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs that kept their weights (--keep-weights)."""
    images: int = 256
    """Number of test images (a fixed subset)."""
    every: int = 1
    """Measure every so many of the kept epochs; the last one is always among them."""
