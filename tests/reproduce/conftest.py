"""Exporting takes most of the time of small models: the same weights are exported once."""

import hashlib

import pytest

from cloister.exposure import measure as module


@pytest.fixture(autouse=True, scope="session")
def _exported_once():
    original, known = module._network, {}

    def network(target, settings):
        digest = hashlib.sha256(f"{target.model} {settings.precision}".encode())
        for tensor in target.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        key = digest.digest()
        if key not in known:
            known[key] = original(target, settings)
        return known[key]

    module._network = network
    yield
    module._network = original
