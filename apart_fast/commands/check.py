"""`apart-fast check`: what this machine can do, and whether it does it right."""

import sys

from apart_fast.check.page import as_data, page, wrong
from apart_fast.check.run import run_checks
from apart_fast.check.settings import CheckConfig
from apart_fast.files import to_json


def run(config: CheckConfig) -> None:
    """Run the checks and print the page; ends with exit code 1 where something is wrong.

    Raises:
        UserError: no such device or folder.
    """
    config.check()
    found = run_checks(config.device, config.quick, config.data_dir, config.cache_dir)
    print(to_json(as_data(found)) if config.json else page(found))
    if wrong(found):
        sys.exit(1)
