"""Steps of `Apart` on several gloo ranks, run by `test_ranks.py`: as a script with RANK, WORLD_SIZE, ... set."""

import sys

import torch
import torch.distributed as dist
from torch import nn

from apart_fast import Apart
from apart_fast.loaders import Split, make_loader
from apart_fast.parallel.exchange import Exchange
from apart_fast.step.optimizer import SGD
from apart_fast.step.ranks import Ranks

METHODS = ("apart", "fgsm+", "fgsm", "fgsm-rs", "n-fgsm", "pgd-2", "atta-2", "standard", "apart+mse")
METHODS += ("fgsm-pgi", "fgsm-mep-cs", "fgsm-rs-cs", "fgsm-uap", "fgsm-cuap", "trades-2", "awp-pgd-2")
FIRST = 2  # epoch: the first in which a gate is open
N, BATCH, EPOCHS, SIZE = 37, 12, 2, 12  # four steps an epoch, the last of one image: other ranks have none
WORLDS = (2, 3)


def data() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 4, (N,), generator=generator))


class EachByItself(nn.Module):
    """BatchNorm of each rank's part of a batch by itself; `sizes`: images of each rank."""

    sizes: list[int] = []

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running = [(torch.zeros(channels).double(), torch.ones(channels).double()) for _ in WORLDS + (0,)]

    def forward(self, x):
        parts = zip(x.split(self.sizes), self.running, strict=False)
        return torch.cat([nn.functional.batch_norm(p, *r, self.weight, self.bias, training=True) for p, r in parts])


NORMS = {"group": lambda n: nn.GroupNorm(2, n), "batch": nn.BatchNorm2d, "each": EachByItself}


def network(norm: str) -> nn.Module:
    normalized = NORMS[norm]
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), normalized(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2), normalized(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).double()


def loader_of(rank: int, world: int):
    return make_loader("resident", data(), batch_size=BATCH, seed=3, padding=2, flip=True, rank=rank, world_size=world)


def trained(method: str, norm: str, loader, ranks: Ranks | None, batches) -> dict:
    """What training on `batches(epoch)` leaves."""
    model = network(norm)
    points = {"points": ["2:output", "5:output"]} if method.startswith("apart") else {}
    apart = Apart(
        model, loader.num_examples, (SIZE, SIZE, 3), padding=2, method=method, dtype=torch.float64, eta=1e-3, decay=2.0,
        seed=5, ranks=ranks, label_smoothing=0.1, **points,
    )  # fmt: skip
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    results = []
    for epoch in range(EPOCHS):
        apart.start_epoch(FIRST + epoch)
        for batch in batches(epoch):
            optimizer.zero_grad()
            if len(batch):
                result = apart.step_crops(batch.images, batch.labels, batch.crops, batch.together)
            else:
                result = apart.step_without_images(batch.together)
            optimizer.step()
            results.append(torch.stack([result.loss, result.start_loss, result.correct.double()]))
    memory = {} if apart.memory is None else {"memory": apart.memory.contents()}
    memory |= {name: t for name, t in apart.state_dict().items() if name in ("gate", "shared", "shared_momentum")}
    return {
        "network": model,
        "model": model.state_dict(),
        "sizes": apart.step_sizes,
        "results": torch.stack(results),
        **memory,
    }


def main() -> None:
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    torch.set_num_threads(1)
    for world in WORLDS:
        group = dist.new_group(list(range(world)))
        if rank < world:
            loader = loader_of(rank, world)
            ranks = Ranks(Exchange(group), torch.from_numpy(loader.shard), N)
            for norm in ("group", "batch"):
                for method in METHODS if norm == "group" else ("apart", "pgd-2"):
                    found[world, norm, method] = trained(method, norm, loader, ranks, loader.epoch)
    for each in found.values():
        del each["network"]
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
