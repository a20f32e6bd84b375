"""Mean and standard deviation of a split's pixels."""

import torch

from apart_fast.loaders.datasets.splits import Split

_AT_ONCE = 2**28  # bytes of images that are converted to float32 together: all of CIFAR or SVHN


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) of each channel, over pixels in [0, 1].

    Of a large split from exact sums, some images at a time; of others as float32 has them, for the sake of runs that
    were begun so.
    """
    channels = split.shape[3]
    if split.nbytes <= _AT_ONCE:
        pixels = split.images.reshape(-1, channels) / 255.0
        return pixels.mean(0).tolist(), pixels.std(0).tolist()
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for block in split.blocks():
        for channel in range(channels):
            counts[channel] += block[..., channel].reshape(-1).bincount(minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = (counts * levels).sum(1) / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (total - 1)
    return mean.tolist(), variance.sqrt().tolist()
