"""Settings of a run that its method does not use, or takes otherwise than one thinks: a line each when it begins."""

from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import get_method


def unused(config: TrainConfig) -> dict[str, str]:
    """Name of each setting that does nothing although somebody asked for it, and why.

    What a recipe sets for APART is not told of its rivals, but for label smoothing, which changes what is compared.
    """
    method, usual = get_method(config.method), TrainConfig.of(config.recipe)
    idle = {
        "eps": None if method.steps else "perturbs nothing",
        "label_smoothing": "draws its labels anew in each pass" if method.loss.relax else None,
        "omega_dtype": None if method.maps else "remembers nothing of each example",
        "eta": None if method.learned else "learns no step sizes",
        "step_decay": None if method.learned else "learns no step sizes",
        "amp_dtype": None if config.amp else "computes in float32 without --amp",
        "points": None if method.blocks else "has no block steps",
    }
    told = {name for name in idle if getattr(config, name) != getattr(usual, name)}
    if config.label_smoothing:
        told.add("label_smoothing")
    return {name: why for name, why in idle.items() if why and name in told}


def lines(config: TrainConfig) -> list[str]:
    """A note for each."""
    method = get_method(config.method)
    said = [
        f"note: {method.name} {why}: --{name.replace('_', '-')} {_said(getattr(config, name))} does not apply"
        for name, why in unused(config).items()
    ]
    if config.grad_accum > 1 and method.of_batches:
        said.append(
            f"note: {method.name} looks at whole batches: with --grad-accum {config.grad_accum} at those of "
            f"{config.batch_size} images, which is another training than one of larger batches"
        )
    return said


def _said(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
