"""Where a run's figures go besides its own files: TensorBoard always, others with `--log`.

What fails there, or hangs, costs itself: one line, and the run goes on without it.
"""

import io
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any, Protocol

from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.files import to_json
from apart_fast.runs.config import LOGGERS, TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import read_if_there
from apart_fast.training.events import Events

PROJECT = "apart_fast"
WITHIN = 60.0  # seconds for a logger to begin, and to end: it may wait for a network
STEP = "global_step"  # the axis: steps done

Values = Mapping[str, float]


class Logger(Protocol):
    """A place for figures."""

    def values(self, values: Values, step: int) -> None:
        """Take the values that names have after `step` steps of the run."""
        ...

    def close(self) -> None: ...


class Wandb:
    """Weights & Biases. `WANDB_MODE=offline` and its other variables count; a resumed run goes on under the same id."""

    def __init__(self, name: str, config: dict[str, Any], folder: str):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=name,
            resume="allow",
            dir=folder,
            config=config,
            allow_val_change=True,  # of --device and the like, in a resumed run
            settings=wandb.Settings(silent=True, console="off", disable_code=True, init_timeout=WITHIN / 2),
        )
        # an axis of its own: of wandb's steps, those that a resumed run takes again would be dropped
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        tqdm.write(f"note: wandb: {f'offline, in {self._run.dir}' if self._run.offline else self._run.url}")

    def values(self, values: Values, step: int) -> None:
        self._run.log({**values, STEP: step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Hugging Face's trackio: a local file, or a Space with its own variables; `trackio show` shows it."""

    def __init__(self, name: str, config: dict[str, Any], folder: str):
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        with redirect_stdout(io.StringIO()):  # a page of advice
            self._run = trackio.init(project=project, name=name, config=config, resume="allow", embed=False)
        tqdm.write(f"note: trackio: run {name}; trackio show --project {project}")

    def values(self, values: Values, step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


# of `LOGGERS`, those besides TensorBoard
MAKERS: dict[str, Callable[[str, dict[str, Any], str], Logger]] = {"wandb": Wandb, "trackio": Trackio}
assert {"tensorboard", *MAKERS} == set(LOGGERS)


class Sparing:
    """A logger that never ends a run.

    Args:
        name: what lines call it.
        make: makes it.
    """

    def __init__(self, name: str, make: Callable[[], Logger]):
        self._name = name
        self._logger: Logger | None = None
        self._logger = self._within("begin", make)

    def values(self, values: Values, step: int) -> None:
        """As of `Logger`; nothing, once it has failed."""
        if self._logger is not None:
            try:
                self._logger.values(values, step)
            except Exception as error:  # whatever a package of somebody else raises
                self._give_up(str(error) or type(error).__name__)

    def close(self) -> None:
        """End it, waiting for it no longer than `WITHIN`."""
        if self._logger is not None:
            self._within("end", self._logger.close)
            self._logger = None

    def _within(self, what: str, do: Callable[[], Any]) -> Any:
        """What `do` gives in a thread of its own; None where it has failed or does not come back."""
        made: list[Any] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                made.append(do())
            except BaseException as error:  # SystemExit too: some end the program so
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True, name=self._name)
        thread.start()
        thread.join(WITHIN)
        if failed:
            self._give_up(str(failed[0]) or type(failed[0]).__name__)
        elif not made:
            self._give_up(f"it does not {what} within {WITHIN:.0f} s")
        return made[0] if made else None

    def _give_up(self, reason: str) -> None:
        self._logger = None
        line = (reason.strip().splitlines() or ["no reason given"])[0]
        tqdm.write(f"note: {self._name} takes no more figures ({line}): going on without it")


class Logs:
    """All places for the figures of a run.

    Args:
        folder: of the run; None: of a rank that writes nothing.
        purge_step: of TensorBoard's events, those from this step on are written again.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder | None, purge_step: int):
        self._events = Events(None if folder is None else folder.path / "tensorboard", purge_step)
        names = [name for name in config.log if name in MAKERS] if folder is not None else []
        self._others: list[Sparing] = []
        if folder is not None and names:
            called, settings = f"{folder.path.resolve().name}-{_identity(folder)}", json.loads(to_json(config))
            for name in names:
                self._others.append(Sparing(name, partial(MAKERS[name], called, settings, str(folder.path))))

    def values(self, values: Values, step: int) -> None:
        """Take the values that names have after `step` steps of the run."""
        for name, value in values.items():
            self._events.scalar(name, value, step)
        for logger in self._others:
            logger.values(values, step)

    def close(self) -> None:
        """Write what is left."""
        self._events.close()
        for logger in self._others:
            logger.close()


def _identity(folder: RunFolder) -> str:
    """Tells a run from others of its name, also after a resume and on other machines."""
    try:
        kept = read_if_there(folder.path / "log.json", dict[str, str], "") or {}
    except UserError:  # damaged: it goes on under a new name
        kept = {}
    if "id" not in kept:
        kept = {"id": secrets.token_hex(4)}
        folder.write("log.json", kept)
    return kept["id"]
