"""Early warning of a collapse ("robustness drop", catastrophic overfitting) from a cheap probe after each epoch."""

from dataclasses import dataclass, field

LOST = 0.5  # a collapse: more than this share of the best probe accuracy is gone ...
LEAST = 0.08  # ... and at least this much, which chance does not do on 256 images (3 standard errors at 0.2)


@dataclass
class CollapseWatch:
    """Feed it the robust accuracy of each epoch's probe.

    Attributes:
        best: highest probe accuracy so far.
        collapsed: whether the last probe lay under the threshold.
        epochs: the epochs (from 1) at which a collapse began.
    """

    best: float = 0.0
    collapsed: bool = False
    epochs: list[int] = field(default_factory=list)

    def update(self, epoch: int, accuracy: float) -> bool:
        """Take the probe of an epoch (from 1); True when a collapse begins with it."""
        self.best = max(self.best, accuracy)
        lost = self.best - accuracy
        before, self.collapsed = self.collapsed, lost > LOST * self.best and lost >= LEAST
        if self.collapsed and not before:
            self.epochs.append(epoch)
            return True
        return False
