"""What tests of data sets need."""

import pytest


@pytest.fixture
def untouched(tmp_path):
    """The folder for a test of bad input: whatever the test puts there before loading must stay as it is."""
    yield tmp_path
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".apart_fast.fetching-*"))
