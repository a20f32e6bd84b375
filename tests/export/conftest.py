"""A finished run for the tests of this folder; not to be altered."""

import pytest

from tests.export.made_runs import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory, image_folder):
    return make_run(tmp_path_factory.mktemp("export") / "run", image_folder)
