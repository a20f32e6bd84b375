"""How a command ends when something is wrong with its input, or when it was asked to stop."""

import errno
import signal
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errno of a disk, quota or file size limit that is used up


class UserError(Exception):
    """Bad input or a missing thing: one line that says what is wrong and what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; `code` is the exit code the shell expects."""

    def __init__(self, signum: int):
        self.signum, self.code = signum, 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class Stopped(Exception):
    """A signal ended a run that can be gone on with; `code` is the exit code the shell expects."""

    def __init__(self, signum: int, folder: Path):
        self.code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; go on with --resume {folder}")


class SaidElsewhere(Exception):
    """This process ends because another one of its training does, which says why; `code` is the exit code."""

    def __init__(self, code: int):
        self.code = code
        super().__init__("another process says why")


class RankLost(Exception):
    """A process of a training has ended without a word, or cannot be reached: one line that names it; `code` is the
    exit code."""

    code = 1
