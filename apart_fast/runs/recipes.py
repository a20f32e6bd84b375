"""Named presets of a training run: `train.py --recipe strong`. A recipe sets defaults; flags beside it win.

| recipe       | what it is for                                                                                  |
|--------------|-------------------------------------------------------------------------------------------------|
| paper        | the released hyper-parameters on CIFAR-10; the defaults of `TrainConfig`                        |
| long         | 200 epochs of repeated 30-epoch triangles, as in the published figure of robust overfitting     |
| strong       | fastat's protocol with APART, its passes kept consistent and larger learned steps               |
| fastat       | the protocol of the FastAT benchmark (arXiv 2604.22853), for figures that compare with its rows |
| fastat-small | the same at a size for two CPU cores: 8,000 images, a quarter of the width, 10 epochs           |
| small        | CIFAR-10 at a size for two CPU cores: 8,000 images, a quarter of the width, 15 epochs           |
| demo         | Fashion-MNIST in minutes on a CPU                                                               |
"""

# its network is a ResNet-18 that is not preactivated; validation on 1,000 images after each epoch, here every fifth
_FASTAT: dict = {
    "epochs": 100,
    "eps": "8/255",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "schedule": "onecycle",
    "schedule_per": "epoch",
    "label_smoothing": 0.4,
    "ema": 0.9995,
    "best_of": "both",
}

# name -> the fields of `TrainConfig` that it sets
RECIPES: dict[str, dict] = {
    "paper": {},
    "long": {"epochs": 200},
    # chosen on validation images at a reduced size, benchmarks/results/strong-fastat-small
    "strong": _FASTAT | {"method": "apart+js", "step_decay": 400.0},
    "fastat": _FASTAT,
    # the average spans a twentieth of the run, as there; rates that move with the epoch would leave the last of so few
    # epochs at 0
    "fastat-small": _FASTAT
    | {
        "width": 0.25,
        "train_images": 8000,
        "val_images": 500,
        "test_images": 2000,
        "epochs": 10,
        "schedule_per": "step",
        "ema": 0.97,
        "val_every": 1,
    },
    "small": {
        "width": 0.25,
        "train_images": 8000,
        "val_images": 500,
        "test_images": 1000,
        "epochs": 15,
        "cycle": 15,
    },
    "demo": {
        "dataset": "fashion-mnist",
        "width": 0.25,
        "train_images": 6000,
        "val_images": 500,
        "test_images": 1000,
        "probe_images": 128,
        "val_every": 3,
        "epochs": 9,
        "cycle": 9,
    },
}
