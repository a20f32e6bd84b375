"""Random starts that depend on seed, epoch and example alone."""

import numpy as np
import pytest
import torch

from apart_fast.step.noise import ExampleNoise

CPU, SHAPE = torch.device("cpu"), (9, 8, 3)


def noise(seed=0, epoch=0, examples=None, indices=(0, 1, 2), half=0.5, dtype=torch.float32):
    source = ExampleNoise(seed, CPU, examples)
    source.start_epoch(epoch)
    return source.uniform(torch.tensor(indices), SHAPE, half, dtype)


def splitmix(state, count):
    """Steele et al. 2014, in Python's integers."""
    mask = 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_the_numbers_are_those_of_splitmix64():
    assert next(splitmix(0, 1)) == 0xE220A8397B1DCDAF  # as published
    golden = 0x9E3779B97F4A7C15
    (key,) = splitmix(3 * golden - golden, 1)
    (key,) = splitmix(key + 7 * golden, 1)
    (state,) = splitmix(key + 5 * golden, 1)
    expected = [((2 * (z >> 40) + 1) / 2**24 - 1) * 0.25 for z in splitmix(state, 9 * 8 * 3)]
    got = noise(seed=3, epoch=7, indices=[5], half=0.25, dtype=torch.float64)
    np.testing.assert_allclose(got.flatten().numpy(), expected, rtol=1e-12)


def test_noise_of_an_example_does_not_depend_on_batch_rank_or_type():
    alone = noise(indices=[4, 2, 9])
    assert torch.equal(noise(indices=[2, 7])[0], alone[1])
    assert torch.equal(noise(indices=[1, 0], examples=torch.tensor([2, 9])), alone[[2, 1]])
    assert torch.equal(noise(indices=[4, 2, 9], dtype=torch.float64).float(), alone)
    others = [noise(seed=1), noise(epoch=1), noise(indices=[3, 4, 5]), noise(seed=-1), noise(seed=2**40)]
    for i, a in enumerate([noise(), *others]):
        for b in others[i:]:
            assert not torch.isclose(a, b).float().mean() > 0.01


@pytest.mark.parametrize("half", [0.0, 8 / 255, 2.0])
def test_noise_is_uniform(half):
    values = noise(indices=range(300), half=half).double()
    assert values.abs().max() <= half
    counts = torch.histc(values, 50, -half or -1, half or 1)
    if half:
        expected = values.numel() / 50
        assert ((counts - expected) ** 2 / expected).sum() < 95  # chi-squared, 49 degrees of freedom: p = 1e-4
        pairs = torch.corrcoef(torch.stack([values.flatten()[:-1], values.flatten()[1:]]))[0, 1]
        assert pairs.abs() < 0.02
