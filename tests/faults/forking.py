"""A process that has imported everything and forks a child for each command: a start takes milliseconds, not seconds.

    python tests/faults/forking.py     # a line of JSON in for each command, two lines out: its pid, its exit code

It has one thread when it forks. The child is as a new process is: signals, descriptors, session, words and folder of
its own, and it ends as the interpreter ends. What it does not do again are the imports; see `Launcher.start` for those.
"""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FURTHER = ("matplotlib.pyplot", "torch.utils.tensorboard", "torchvision.models", "numba", "cv2", "timm", "scipy.io")
THREADED = {"apart_fast.loaders.ffcv_backend"}  # importing FFCV starts a thread of numba's, which a fork would lose
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def warm_up() -> None:
    """Import what the commands would."""
    sys.path[0] = str(ROOT)  # as for train.py
    import apart_fast
    import apart_fast.loaders as loaders

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in (apart_fast, loaders):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                if module.name not in THREADED:
                    importlib.import_module(module.name)
        for name in FURTHER:
            try:
                importlib.import_module(name)
            except ImportError:  # an extra that is not installed
                pass
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread: a fork would lose it")
    gc.collect()
    gc.freeze()


def serve() -> dict:
    """Fork for each line that comes, one after the other; returns in the child, with what it is asked for."""
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if not pid:
            return json.loads(line)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitpid(pid, 0)[1]
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
    sys.exit()


def become(asked: dict) -> None:
    """Take over what a new process would have: session, descriptors, folder, signals."""
    os.setsid()
    os.chdir(asked["folder"])
    for path, flags, target in (
        ("/dev/null", os.O_RDONLY, 0),
        (asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (asked["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 2),
    ):
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, target)
        os.close(handle)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def work(program: str, words: list[str]) -> None:
    """What `python train.py`, `apart-fast` or a function of the campaign does."""
    if program == "call":
        sys.path.insert(0, str(ROOT / "tests"))
        module, _, function = words[0].partition(":")
        print(json.dumps(getattr(importlib.import_module(module), function)(*words[1:])))
        return
    sys.argv = [program, *words]
    if program == "train.py":
        sys.argv[0] = str(ROOT / program)
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:  # as the console script does
        from apart_fast.cli import main

        sys.exit(main())


if __name__ == "__main__":
    warm_up()
    print(json.dumps({"ready": True}), flush=True)
    order = serve()
    become(order)
    work(order["program"], order["words"])
