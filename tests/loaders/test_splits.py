"""Parts of a split, the same for good."""

import numpy as np
import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.loaders import Split, fingerprint, subset, take_validation


def numbered(n=1000, classes=7):
    """Each image holds its own number, so that its place can be told."""
    images = torch.arange(n, dtype=torch.int32).view(torch.uint8).reshape(n, 2, 2, 1)
    return Split(images, torch.arange(n) % classes, "numbered")


def numbers(split):
    return split.images.flatten(1).contiguous().view(torch.int32).flatten().tolist()


def test_validation_is_fixed_and_spread_over_the_classes():
    split = numbered()
    train, val = take_validation(split, 140)
    assert len(val) == 140 and sorted(numbers(train) + numbers(val)) == list(range(1000))
    assert numbers(train) == sorted(numbers(train)) and numbers(val) == sorted(numbers(val))
    assert all(i % 7 == label for i, label in zip(numbers(val), val.labels.tolist(), strict=True))
    assert set(val.labels.bincount().tolist()) <= {19, 20, 21}
    torch.manual_seed(1)
    np.random.seed(1)
    assert numbers(take_validation(split, 140)[1]) == numbers(val)
    assert numbers(take_validation(split, 140, seed=1)[1]) != numbers(val)
    assert numbers(take_validation(split, 3)[1]) == [145, 501, 906]  # for good: else old results are not comparable


def test_validation_keeps_the_classes_proportions():
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    split = Split(torch.zeros(1000, 2, 2, 1, dtype=torch.uint8), labels)
    assert take_validation(split, 100)[1].labels.bincount().tolist() == [90, 10]


def test_subset_is_fixed_and_nested():
    split = numbered()
    small, large = subset(split, 70), subset(split, 300)
    assert len(small) == 70 and set(numbers(small)) < set(numbers(large))
    assert set(small.labels.bincount().tolist()) <= {9, 10, 11}
    assert numbers(subset(split, 1000)) == list(range(1000))


@pytest.mark.parametrize("size", [-1, 1000, 2000])
def test_validation_that_does_not_fit(size):
    with pytest.raises(UserError, match="choose a smaller one"):
        take_validation(numbered(), size)


@pytest.mark.parametrize("n", [0, 1001])
def test_subset_that_does_not_fit(n):
    with pytest.raises(UserError, match="choose a number from 1 to 1000"):
        subset(numbered(), n)


def test_fingerprint_sees_images_labels_and_shape():
    split = numbered()
    images, labels = split.images.clone(), split.labels.clone()
    images[5, 1, 1, 0] ^= 1
    labels[5] += 1
    splits = [
        split,
        Split(images, split.labels),
        Split(split.images, labels),
        Split(split.images.mT.reshape(1000, 1, 4, 1), split.labels),
    ]
    assert len({fingerprint(s) for s in splits}) == 4
    assert fingerprint(Split(split.images.clone(), split.labels, "other name")) == fingerprint(split)
