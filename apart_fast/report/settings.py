"""Settings of `apart-fast report`; each field is a flag (docstrings are its help)."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class ReportConfig:
    """Write a run, or several side by side, as one HTML page that can be sent to anyone."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path | None = None
    """HTML file. None: report.html in the folder of the run; several runs need it."""
