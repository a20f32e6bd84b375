"""How long a part should take on an H100: estimates, made before anything ran on one. Seconds everywhere.

| quantity                  | value               | where it comes from                                             |
|---------------------------|---------------------|-----------------------------------------------------------------|
| a pass of PreActResNet-18 | 1.11 GFLOP an image | counted: an APART step is 5 passes and 5.55, PGD-10 23 and 25.6 |
| bfloat16, a training step | 100 TFLOP/s         | assumed: an eighth of a large matrix product's 800              |
| float32, an attack        | 20 TFLOP/s          | assumed: a third of the data sheet's 67 without tensor cores    |
| start of a command        | 25 s                | assumed: imports, CUDA, graph, first Triton kernels             |

The eighth: batch norm and relu move 2 x 2 bytes for each of a map's values several times a pass, and at 32x32 with 64
channels that takes longer than the convolutions' arithmetic. Verifications and benchmarks are sums of such steps where
they can be counted, and guesses where compiling takes most of the time; `how` of a part says which.
"""

import math

from apart_fast import get_method
from apart_fast.errors import UserError

PASS = 1.11e9  # operations an image
BFLOAT16, FLOAT32 = 100e12, 20e12  # operations a second
START = 25.0
TRAIN, VALIDATION, TEST, PROBE = 49_000, 1_000, 10_000, 256  # images

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def step(method: str, images: int) -> float:
    """Training steps on so many images, in bfloat16."""
    return images * get_method(method).passes * PASS / BFLOAT16


def attack(steps: int, images: int, restarts: int = 1) -> float:
    """PGD of so many steps, a forward and a backward to the data each and a last forward, in float32."""
    return images * restarts * (2 * steps + 1) * PASS / FLOAT32


def training(method: str, epochs: int, *, val_every: int = 5, test: bool = True, factor: float = 1.0) -> float:
    """A run at the released settings: epochs, PGD-20 on validation images, the probe, PGD-20 on the test images.

    factor: on the seconds of the steps.
    """
    seconds = START + factor * epochs * step(method, TRAIN) + epochs * attack(10, PROBE)
    seconds += math.ceil(epochs / val_every) * attack(20, VALIDATION)
    return seconds + (2 * attack(20, TEST) if test else 0.0)


def parse_duration(text: str) -> float:
    """Seconds of "25m", "90s", "2h", "1500".

    Raises:
        UserError: none of these, or nothing above 0.
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"--budget {text} is no time: give seconds, or 25m, or 2h")
    return seconds


def clock(seconds: float) -> str:
    """ "45 s", "3 min", "2.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
