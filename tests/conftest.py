"""What several test files need."""

import os
import signal

for number in (signal.SIGINT, signal.SIGHUP):  # nohup and shells' background jobs hand them on as ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads make tests on a busy machine ten times slower

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

# oneDNN writes past the end of a buffer in the float32 weight gradient of shortcuts as narrow as those of the tests
# (apart_fast/models/thinning.py): a step of ours avoids that, the plain ones that it is compared with do not
torch.backends.mkldnn.set_flags(False)

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_stay():
    """A test that leaves torch another number of threads would change the bits of those after it."""
    yield
    assert torch.get_num_threads() == THREADS, "this test, or a fixture of it, changed torch's number of threads"


CLASSES = ("circle", "cross", "square")


def draw_folder(root, train=48, test=12, size=12):
    """A learnable image folder train/<class>/*.png, test/<class>/*.png of RGB images."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    shapes = {
        "circle": np.hypot(x, y) < size / 3,
        "cross": (abs(x) < 1.5) | (abs(y) < 1.5),
        "square": np.maximum(abs(x), abs(y)) < size / 4,
    }
    for part, count in (("train", train), ("test", test)):
        for name, mask in shapes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count // 3):
                pixels = random.integers(0, 90, (size, size, 3)) + 130 * mask[..., None]
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i:03}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """48 + 12 images of three classes; not to be altered."""
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own_folder(tmp_path):
    """The same images for a test that damages them."""
    return draw_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def settings(image_folder):
    """Command line of a training run of a second: 6 steps an epoch, the last one partial."""
    flags = {
        "dataset": "folder",
        "data-dir": image_folder,
        "model": "preact_resnet18",
        "width": 0.0625,
        "batch-size": 8,
        "val-images": 6,
        "probe-images": 6,
        "epochs": 3,
        "lr": 0.05,
        "device": "cpu",
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))] + ["--no-progress"]
