"""Shared by all tests."""

import os
import signal

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background job ignores Ctrl-C, and so would every process that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _state_folder(tmp_path_factory):
    """Device keys of the tests stay apart from the user's."""
    folder = tmp_path_factory.mktemp("state")
    before = os.environ.get("CLOISTER_STATE")
    os.environ["CLOISTER_STATE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["CLOISTER_STATE"]
    else:
        os.environ["CLOISTER_STATE"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Two threads crawl when another job has one of the cores."""
    import torch

    torch.set_num_threads(1)
