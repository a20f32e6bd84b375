"""How a command ends when something is wrong with its input, or when it was asked to stop."""

import signal
from pathlib import Path


class UserError(Exception):
    """Bad input or a missing thing: one line that says what is wrong and what to do."""


class Stopped(Exception):
    """A signal ended the run after a checkpoint was written; `code` is the exit code the shell expects."""

    def __init__(self, signum: int, folder: Path):
        self.code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; go on with --resume {folder}")
