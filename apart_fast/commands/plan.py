"""`apart-fast plan`: what a training on many GPUs would need."""

from apart_fast.files import to_json
from apart_fast.plan.counting import count_network
from apart_fast.plan.make import make_plan
from apart_fast.plan.page import as_data, page
from apart_fast.plan.settings import PlanConfig


def run(config: PlanConfig) -> None:
    """Print the plan.

    Raises:
        UserError: settings that make no sense, or a network that cannot be counted.
    """
    config.check()
    made = make_plan(config, count_network(config))
    print(to_json(as_data(made)) if config.json else page(made))
