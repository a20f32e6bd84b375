"""Settings of `train.py`, `apart-fast evaluate` and the demo; each field is a flag (docstrings are its help)."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from apart_fast.errors import UserError
from apart_fast.evaluation.names import parse_attacks
from apart_fast.loaders.table import DATASET_NAMES, LOADER_NAMES
from apart_fast.runs.data_settings import DataSettings
from apart_fast.runs.recipes import RECIPES
from apart_fast.runs.schema import misfit
from apart_fast.step.methods import METHODS, check_keeping, get_method
from apart_fast.step.schedules import SCHEDULES, check_schedule
from apart_fast.units import check_settings, parse_eps

LOGGERS = ("tensorboard", "wandb", "trackio")  # the last two are extras

if TYPE_CHECKING:
    RecipeName = str
    LoaderName = str
    ScheduleName = str
    LoggerName = str
else:  # the flags take the names of the tables
    RecipeName = Literal[*RECIPES]
    LoaderName = Literal[*LOADER_NAMES]
    ScheduleName = Literal[*SCHEDULES]
    LoggerName = Literal[*LOGGERS]

# for the help
DATASETS = (
    f"{', '.join(DATASET_NAMES)} (folder: train/<class>/*, test/<class>/* in --data-dir; hf: parquet files there, or "
    "hf:NAME of the Hugging Face hub, or hf:FOLDER)."
)
FAMILY = ", ".join(name + "-K" * takes_steps for name, (_, takes_steps, _) in METHODS.items())

# what each version has written to config.json
ALWAYS = (
    *("dataset", "data_dir", "download", "train_images", "val_images", "test_images", "flip", "padding"),
    *("ffcv", "loader", "workers", "model", "width", "normalize", "points", "method", "eps", "step_decay", "eta"),
    *("omega_dtype", "epochs", "cycle", "batch_size", "lr", "weight_decay", "label_smoothing", "ema", "amp"),
    *("amp_dtype", "device", "threads", "seed", "eval_eps", "val_every", "probe_images", "test", "log_every"),
    *("progress", "out", "resume", "checkpoint_every"),
)

# what is of one run, and not of the next with the same settings
OF_ONE_RUN = ("out", "resume", "config", "dry_run", "profile")

# fields that JSON has as text and as lists
PATHS = ("data_dir", "cache_dir", "init_from", "out", "resume", "config")
LISTS = ("points", "milestones", "log")

# what a resumed run may set anew
MOVABLE = ("data_dir", "cache_dir", "download", "device", "kernels", "workers", "progress")


@dataclass
class TrainConfig(DataSettings):
    """Train a robust image classifier with APART or one of its rivals.

    The defaults are the released hyper-parameters of APART on CIFAR-10: PreActResNet-18, batch 128, 30 epochs.
    """

    recipe: RecipeName = "paper"
    """Preset that the other flags start from (apart_fast/runs/recipes.py); paper: the released settings."""

    # ---- data
    dataset: Annotated[str, tyro.conf.arg(help=DATASETS)] = "cifar10"
    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    cache_dir: Path | None = None
    """Where files derived from the data go (decoded images, FFCV's). None: .apart_fast in --data-dir."""
    download: bool = True
    """Download a missing data set."""
    train_images: int | None = None
    """Train on a fixed subset of so many images. None: all of them."""
    val_images: int = 1000
    """Size of the fixed validation split, taken from the training set."""
    test_images: int | None = None
    """Judge on a fixed subset of so many test images. None: all of them."""
    flip: bool | None = None
    """Random horizontal flips. None: of all data sets but svhn (mirrored digits are other signs)."""
    padding: int | None = None
    """Grey pixels on each side before the random crop. None: the released 4 up to 32 pixels, an eighth of the shorter
    side of larger images (8 of 64)."""

    # ---- loading
    ffcv: bool = False
    """Load with FFCV; the same as --loader ffcv."""
    loader: LoaderName | None = None
    """Where batches come from. None: resident (all images on the device as uint8)."""
    workers: int | None = None
    """Workers of the ffcv and dataloader loaders. None: one for each core, at most 8 (ffcv), or none
    (dataloader)."""

    # ---- model
    model: str = "preact_resnet18"
    """preact_resnet18, preact_resnet34, preact_resnet50, wide_resnet28_10, wide_resnet34_10, torchvision/<name> or
    timm/<name>."""
    width: float = 1.0
    """Width factor of our own models (0.25: a quarter of the channels)."""
    normalize: bool = False
    """Put the data's mean and standard deviation into the model as its first layer."""
    points: tuple[str, ...] | None = None
    """Patterns of submodules whose input (or name:output) takes block steps. None: the model's own."""

    init_from: Path | None = None
    """Begin with the weights of a run, a best.pt, last.pt, state dict (.pt) or safetensors file; pretrained: those that
    torchvision or timm has for --model. Classes may be others: then the head is made anew."""

    # ---- method
    method: Annotated[str, tyro.conf.arg(help=f"{FAMILY}. fgsm+ is apart without blocks.")] = "apart"
    eps: str = "0.031"
    """Radius of the L-inf ball in training, a fraction of the pixel range ("8/255" is understood)."""
    step_decay: float = 1200.0
    """lambda, weight decay of the step sizes: 1200 gave the published curves, 400 is the script on torch >= 2."""
    eta: float = 5e-8
    """Peak learning rate of the step sizes for 11,730 steps a cycle; scaled to this run's steps."""
    omega_dtype: Literal["float32", "float16", "int8"] = "float16"
    """How the remembered directions are stored."""
    omega_device: Literal["device", "host", "disk"] = "device"
    """Where they lie: on the device or, if they are too many for it, in host memory or on the run folder's disk."""

    # ---- optimisation
    epochs: int = 30
    """Passes over the training set."""
    cycle: int = 30
    """Epochs of one triangle of the learning rates; longer runs repeat it."""
    schedule: ScheduleName = "triangle"
    """How the learning rates go: the released triangle, or over the whole run torch's OneCycleLR, a cosine to 0, or a
    tenth from each of --milestones on."""
    schedule_per: Literal["step", "epoch"] | None = None
    """What the rates move with. None: each step; multistep each epoch."""
    milestones: tuple[int, ...] | None = None
    """Of multistep: epochs after which the rates are a tenth. None: half and three quarters of the run."""
    batch_size: int = 128
    """Images in a step, of all processes together: the other settings stay as they are when GPUs are added."""
    grad_accum: int = 1
    """Batches whose gradients make one update, as one batch of all their images would; each has BatchNorm statistics of
    its own. Rates are scheduled over updates."""
    lr: float = 0.2
    """Peak learning rate of the weights."""
    weight_decay: float = 2e-4
    """Weight decay of the weights."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    ema: float = 0.0
    """Decay of an average of the weights that is judged instead of them (0.999 is usual). 0: none."""
    best_of: Literal["average", "both"] = "average"
    """What best.pt may hold where there is an average: the average, or the better of it and the weights themselves, by
    PGD-10 on the validation images."""
    sync_bn: bool = False
    """With several processes: BatchNorm takes the statistics of all their images, not of each one's (GPUs only)."""
    amp: bool = False
    """Mixed precision; the first layer, perturbations and clamps stay in float32."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """What --amp computes in; float16 comes with loss scaling."""
    compile: bool = False
    """Compile the model with torch's inductor (minutes, once); the block points are compiled along. On a CPU it needs a
    C++ compiler; on two busy cores it took one to two and a half minutes and made steps of a small network 1.2 to 2.2
    times as fast."""
    graph: bool | None = None
    """Replay each step as one CUDA graph. None: on a GPU."""
    deterministic: bool = False
    """Repeatable bits on a GPU: no search for the quickest convolutions, deterministic algorithms where torch has them.
    Slower. On a CPU it changes nothing: its runs are repeatable anyway."""
    kernels: Literal["auto", "triton", "torch"] = "auto"
    """What does the arithmetic of a step on a GPU besides the network: Triton kernels (triton), plain PyTorch, slower
    (torch), or Triton where it works and else PyTorch (auto)."""
    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    threads: int | None = None
    """CPU threads of torch. None: as torch chooses."""
    seed: int = 0
    """Of weights, order, crops, flips and random starts."""

    # ---- watching
    eval_eps: str = "8/255"
    """Radius of the attacks in validation and test; their step is a quarter of it."""
    val_every: int = 5
    """Validate (clean and PGD-20) every so many epochs, and after the last. Picks the best checkpoint."""
    probe_images: int = 256
    """Validation images of the cheap PGD-10 probe after each epoch that warns of collapse. 0: no probe."""
    test: bool = True
    """Judge the last and the best weights on the test set at the end (clean and PGD-20)."""
    log_every: int = 20
    """Steps between updates of the progress bar and TensorBoard."""
    log: tuple[LoggerName, ...] = ("tensorboard",)
    """Where the figures go besides the run's own files: TensorBoard (always), wandb, trackio; their environment
    variables count (WANDB_MODE=offline)."""
    progress: bool = True
    """Show progress bars (never shown where the output is not a terminal)."""

    profile: bool = False
    """Instead of training: time some steps, print a table of their phases, write profile.json and a Chrome trace."""

    dry_run: bool = False
    """Instead of training: two steps, a checkpoint, going on from it and an evaluation, at the real size, in a
    temporary folder; says how each went and how long a run would take, and leaves nothing behind."""

    # ---- records
    config: Path | None = None
    """YAML file with settings (or the config.json of a run) that the flags start from; flags win."""
    out: Path | None = None
    """Run folder. None: runs/<dataset>-<method>-<time>."""
    resume: Path | None = None
    """Go on with the run in this folder, from its last checkpoint; auto: with that in --out if it has begun, else begin
    it there (for torchrun --max-restarts and queues that preempt). Its settings hold; only --data-dir,
    --cache-dir, --download, --device, --kernels, --workers and --progress may differ."""
    checkpoint_every: int | None = None
    """Epochs between checkpoints of the whole state. None: by time, so that they take at most about 2 % of the
    training: after an epoch, and in a long one every two minutes. Also at the end, on SIGTERM, SIGHUP and Ctrl-C."""
    keep_weights: int = 0
    """Keep the weights of every so many epochs as weights/epoch-0007.pt, for `apart-fast analyze`. 0: none."""

    given: ClassVar[frozenset[str]] = frozenset()  # fields that words or a file named, whatever their values

    @classmethod
    def of(cls, recipe: str, **settings: Any) -> "TrainConfig":
        """The settings of a recipe, with `settings` in place of its own.

        Raises:
            UserError: no such recipe.
        """
        if recipe not in RECIPES:
            raise UserError(f"unknown recipe {recipe!r}: choose from {', '.join(RECIPES)}")
        return cls(**{"recipe": recipe, **RECIPES[recipe], **settings})

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: one line with the flag and the values it takes.
        """
        if self.ffcv and self.loader not in (None, "ffcv"):
            raise UserError(f"--ffcv and --loader {self.loader} contradict each other: give one of them")
        if self.dry_run and self.profile:
            raise UserError("--dry-run and --profile are each something else than training: give one of them")
        check_settings(self)
        _ = self.reading
        check_keeping(get_method(self.method), self.omega_dtype, self.omega_device, flags=True)
        if self.best_of == "both" and not self.ema:
            raise UserError(
                "--best-of both compares the weights with their average: give --ema, such as 0.9995, or --best-of "
                "average"
            )
        check_schedule(
            self.schedule,
            epochs=self.epochs,
            cycle_given=self.cycle != TrainConfig.of(self.recipe).cycle,
            by_epoch=self.schedule_by_epoch,
            milestones=self.milestones,
        )

    @property
    def schedule_by_epoch(self) -> bool | None:
        """Whether the rates move once an epoch; None: as the schedule usually does."""
        return None if self.schedule_per is None else self.schedule_per == "epoch"

    def resumed(self, saved: "TrainConfig") -> "TrainConfig":
        """The settings `saved` with a run, moved to where `self` says the data and the device are now.

        Raises:
            UserError: `self` sets something that a resumed run cannot change.
        """
        fresh, values = TrainConfig.of(self.recipe), {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: v for name, v in values.items() if name in self.given or v != getattr(fresh, name)}
        if self.recipe not in (saved.recipe, "paper"):
            given["recipe"] = self.recipe
        for name in ("resume", "config"):  # what the file says is compared
            given.pop(name, None)
        changed = [name for name in given if name not in MOVABLE and given[name] != getattr(saved, name)]
        if changed:
            flags = ", ".join("--" + name.replace("_", "-") for name in changed)
            raise UserError(f"a resumed run keeps its settings: leave out {flags}, or start a new run")
        return replace(saved, **{name: value for name, value in given.items() if name in MOVABLE})

    @property
    def loader_kind(self) -> str:
        """Key of `apart_fast.loaders.LOADERS`."""
        return "ffcv" if self.ffcv else self.loader or "resident"


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values as the fields have them, from those of JSON (`misfit` has found nothing in them)."""
    made = {**values}
    for field in fields(TrainConfig):
        if field.name in PATHS and field.name in values:
            made[field.name] = Path(values[field.name]) if values[field.name] else field.default
        elif field.name in LISTS and field.name in values:
            made[field.name] = tuple(values[field.name]) if values[field.name] else field.default
        elif field.type is float and field.name in values:
            made[field.name] = float(values[field.name])
    return made


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The settings in config.json, checked.

    Raises:
        ValueError: they are not those of a run.
    """
    missing = next((name for name in ALWAYS if name not in values), None)
    if (wrong := misfit(values, TrainConfig)) is not None or missing is not None:
        raise ValueError(wrong or f"{missing} is missing")
    config = TrainConfig(**typed(values))
    try:
        config.check()
        parse_eps(config.eps)
        parse_eps(config.eval_eps)
        get_method(config.method)
    except UserError as error:
        raise ValueError(str(error)) from error
    return config


@dataclass
class EvaluateConfig(DataSettings):
    """Judge a checkpoint: accuracy on clean and attacked test images, with confidence intervals."""

    checkpoint: tyro.conf.Positional[Path]
    """A best.pt or last.pt of a run."""
    dataset: str | None = None
    """Data set to judge on. None: the one it was trained on."""
    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    cache_dir: Path | None = None
    """Where files derived from the data go (decoded images, FFCV's). None: .apart_fast in --data-dir."""
    download: bool = True
    """Download a missing data set."""
    images: int | None = None
    """Judge on a fixed subset of so many test images. None: all of them."""
    attacks: tuple[str, ...] = ("clean", "pgd-20")
    """Any of clean, fgsm, pgd-K, autoattack (needs the extra `autoattack`)."""
    eps: str = "8/255"
    """Radius of the L-inf ball, a fraction of the pixel range; the step is a quarter of it."""
    restarts: int = 1
    """Random starts of PGD."""
    batch_size: int = 256
    """Images attacked at a time."""
    average: bool = True
    """Judge the averaged weights where the checkpoint has them."""
    amp: bool = False
    """Search with fgsm and pgd in bfloat16 (quicker; what holds is still decided in float32)."""
    seed: int = 0
    """Of the random starts."""
    device: str | None = None
    """cuda, cuda:1, cpu, ... None: a GPU if there is one."""
    out: Path | None = None
    """JSON file for the report. None: evaluation.json beside the checkpoint."""
    progress: bool = True
    """Show a progress bar (never shown where the output is not a terminal)."""

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: one line with the flag and the values it takes.
        """
        check_settings(self)
        _ = self.reading
        parse_eps(self.eps)
        parse_attacks(self.attacks, self.restarts)


@dataclass
class DemoConfig:
    """The main job at a small size: APART on Fashion-MNIST beside ordinary training, minutes on a CPU."""

    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to (Debian's dataset-fashion-mnist is found by itself)."""
    cache_dir: Path | None = None
    """Where files derived from the data go (decoded images, FFCV's). None: .apart_fast in --data-dir."""
    out: Path = Path("runs/demo")
    """Folder for the runs and pictures; a demo that lies there is replaced."""
    loader: LoaderName = "ffcv"
    """Where batches come from; ffcv where it is not installed: resident."""
