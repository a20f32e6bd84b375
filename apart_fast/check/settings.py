"""Settings of `apart-fast check`; each field is a flag (docstrings are its help)."""

from dataclasses import dataclass
from pathlib import Path

from apart_fast.errors import UserError


@dataclass
class CheckConfig:
    """Check this machine: versions, kernels, a training step, resuming, loaders, speed; and which flags suit it.

    Takes under a minute. Exit code 0: all that was run is right; 1: something is wrong. Send the page with a bug
    report.
    """

    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    data_dir: Path | None = None
    """Also read every data set that lies there (nothing is downloaded)."""
    cache_dir: Path | None = None
    """Where files derived from the data go. None: .apart_fast in --data-dir."""
    json: bool = False
    """Print JSON instead of the page."""
    quick: bool = False
    """Fewer shapes, and no measurements."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: no such folder.
        """
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise UserError(f"--data-dir {self.data_dir} is not a folder: name the one with the data")
