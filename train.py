"""Train a robust classifier: `python train.py --amp --ffcv` (see `--help`)."""

from apart_fast.cli import train_command

if __name__ == "__main__":
    train_command()
