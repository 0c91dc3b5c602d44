"""Sizes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UserError
from cloister.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("8MiB", 8 << 20), ("256 kib", 256 << 10), ("1.5 KiB", 1536), ("100", 100), ("2MB", 2_000_000), ("7b", 7)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "1.0001", "8 MB/s", "1e6", "8XiB"])
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match="expected something like"):
        parse_bytes(text)


@given(st.integers(1, 2**40))
def test_printed_sizes_are_near(size):
    number, unit = format_bytes(size).split()

    factor = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert abs(float(number) * factor - size) <= max(0.005 * size, 1)
