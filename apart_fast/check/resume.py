"""Four training steps at once, and two, a checkpoint, a new start and two."""

import torch
from torch import Tensor

from apart_fast.check.drawn import drawn_data
from apart_fast.check.lines import Given, Line, judged
from apart_fast.loaders import Dataset
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.trainer import Trainer

IMAGES, BATCH, STEPS, WIDTH = 48, 8, 4, 0.25
WITHIN = 1e-2  # on a GPU, relative: convolutions may sum in another order


def check(given: Given) -> list[Line]:
    """The same bits on the CPU, the same numbers on a GPU."""
    path = given.folder / "run"
    path.mkdir()
    data = drawn_data(IMAGES, given.folder)
    config = TrainConfig(
        dataset="drawn",
        width=WIDTH,
        batch_size=BATCH,
        val_images=BATCH,
        probe_images=0,
        epochs=1,
        cycle=1,
        lr=0.01,
        device=str(given.device),
        test=False,
        progress=False,
        out=path,
    )
    folder = RunFolder(path)
    whole = _train(config, folder, data, STEPS)
    _train(config, folder, data, STEPS // 2)  # its checkpoint takes the place of the first
    resumed = _train(config, folder, data, STEPS, checkpoint.load(folder.last))
    equal = all(map(torch.equal, [whole[0], *whole[1]], [resumed[0], *resumed[1]]))
    gap = ((resumed[0] - whole[0]).norm() / whole[0].norm()).item()
    if given.device.type == "cpu":
        return [
            judged(
                "2 + 2 steps against 4", equal, "the same bits" if equal else f"other bits, weights {gap:.1g}", gap=gap
            )
        ]
    text = f"weights, relative: {gap:.1g} (up to {WITHIN:g}); the same bits are not claimed on a GPU"
    return [judged("2 + 2 steps against 4", gap <= WITHIN, text, gap=gap)]


def _train(
    config: TrainConfig, folder: RunFolder, data: Dataset, until: int, state: dict | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Train to step `until`, save, and return the weights as one vector; statistics, momentum, omega and step sizes."""
    trainer = Trainer(config, folder, data, state)
    trainer.model.train()
    try:
        for batch in trainer.loader.epoch(0, start=trainer.progress.step):
            if trainer.progress.step == until:
                break
            trainer.step(batch)
            trainer.progress.step += 1
        trainer.state.save()
    finally:
        trainer.loader.close()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    apart = [t for name, t in trainer.apart.state_dict().items() if name != "generator"]
    kept = [*trainer.model.buffers(), *trainer.optimizer.velocities(), *apart]
    return weights.cpu(), [t.detach().cpu().clone() for t in kept]
