"""Settings of `apart-fast export` and `apart-fast predict`; each field is a flag (docstrings are its help)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from apart_fast.errors import UserError
from apart_fast.evaluation.names import parse_attacks
from apart_fast.export.find import find_network
from apart_fast.export.formats import FORMATS, check_installed
from apart_fast.units import check_settings, parse_eps

FormatName = Literal["safetensors", "onnx", "torch-export", "robustbench"]
_FILES = {".safetensors", ".pt", ".pt2", ".onnx", ".bin"}
PREDICT_ATTACKS = ("fgsm", "pgd", "autoattack")


@dataclass
class ExportConfig:
    """Write a network in a format that others open. It is opened, run and compared before it is called done."""

    run: tyro.conf.Positional[Path]
    """Folder of a run (its best.pt, else its last.pt), a best.pt or last.pt, or an exported safetensors folder."""
    to: FormatName
    """safetensors: a folder as the Hugging Face hub shows it, with the network's source; onnx: a file for ONNX Runtime;
    torch-export: a file for torch.export.load; robustbench: a folder for RobustBench and AutoAttack."""
    out: Path | None = None
    """File or folder to write. None: safetensors/, model.onnx, model.pt2 or robustbench/ beside the checkpoint."""
    data_dir: Path | None = None
    """Where the test images lie that the exported network is compared on. None: where the run had its data."""
    cache_dir: Path | None = None
    """Where files derived from the data go. None: where the run had them, or .apart_fast in --data-dir."""
    images: int = 1000
    """Compare on so many test images at most."""
    licence: str = "mit"
    """Of the weights, as the hub names licences (mit, apache-2.0, cc-by-4.0, other, ...)."""

    def check(self) -> None:
        """Refuse what makes no sense, and what can be told to be missing without torch.

        Raises:
            UserError: one line with the flag, the path or the package.
        """
        check_settings(self)
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", self.licence):
            raise UserError(f"--licence {self.licence!r} is no licence's name: write it like mit, apache-2.0 or other")
        find_network(self.run)
        wanted = FORMATS[self.to]
        check_installed(wanted)
        ending = Path(wanted.name).suffix
        if self.out is not None and not wanted.folder and self.out.suffix != ending:
            raise UserError(f"--out {self.out}: name a file that ends in {ending}, as others expect it")
        if self.out is not None and wanted.folder and self.out.suffix in _FILES:
            raise UserError(f"--out {self.out}: --to {self.to} writes a folder, so name one")


@dataclass
class PredictConfig:
    """What a network takes pictures for: class and probability, and whether that holds under attack."""

    run: tyro.conf.Positional[Path]
    """Folder of a run (its best.pt, else its last.pt), a best.pt or last.pt, or an exported safetensors folder."""
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files."""
    attack: str | None = None
    """Search a change within eps that alters the decision: fgsm, pgd-K, autoattack (needs the extra `autoattack`)."""
    eps: str = "8/255"
    """Radius of the L-inf ball, a fraction of the pixel range; the step of PGD is a quarter of it."""
    restarts: int = 1
    """Random starts of PGD."""
    batch_size: int = 64
    """Pictures at a time."""
    seed: int = 0
    """Of the random starts."""
    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    json: bool = False
    """Print JSON, with the probability of every class."""

    def check(self) -> None:
        """Refuse what makes no sense, and what can be told to be missing without torch.

        Raises:
            UserError: one line with the flag or the path.
        """
        check_settings(self)
        parse_eps(self.eps)
        if not self.pictures:
            raise UserError("no pictures: name one or more picture files after the run")
        if self.attack is not None and self.parsed[0] not in PREDICT_ATTACKS:
            raise UserError(f"--attack {self.attack} is no attack: give fgsm, pgd-K or autoattack")
        find_network(self.run)

    @property
    def parsed(self) -> tuple[str, int | None]:
        """The attack and its number of steps, if it has one.

        Raises:
            UserError: it is unknown.
        """
        assert self.attack is not None
        return parse_attacks([self.attack], self.restarts)[self.attack]
