"""One run on digits for all tests."""

import pytest

from tests.attacks import digits


@pytest.fixture(scope="session")
def run():
    return digits.run()
