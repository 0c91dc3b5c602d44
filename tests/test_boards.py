"""Board profiles: those of the package, files of one's own, and what is wrong with a file."""

import pytest

from cloister.boards import SUITES, TA_BYTES, load_board, load_boards
from cloister.errors import UserError

GOOD = """
[my-board]
title = "A board"
platform = "imx-mx8mmevk"
heap_bytes = 2_097_152
stack_bytes = 65_536
shared_bytes = 1_048_576
march = "armv8-a+crypto"
suite = "AES-256-GCM"
secure_ram = true
rpmb = true
secure_boot = true
emulated = false
"""


@pytest.fixture
def write(tmp_path):
    """Writes a profile and gives its path."""

    def make(text):
        path = tmp_path / "board.toml"
        path.write_text(text)
        return str(path)

    return make


def test_boards_of_the_package_are_whole():
    boards = load_boards()
    assert {"qemu-virt", "rpi3"} <= set(boards)
    for name, board in boards.items():
        assert load_board(name) == board
        assert board.name == name
        assert len(name.encode("ascii")) <= 31
        assert board.suite in SUITES
        assert TA_BYTES < board.inside_bytes == board.heap_bytes - TA_BYTES


def test_weaknesses_say_what_a_board_lacks():
    boards = load_boards()
    assert [text.partition(":")[0] for text in boards["rpi3"].weaknesses] == ["no secure RAM", "no secure boot"]
    assert [text.partition(":")[0] for text in boards["qemu-virt"].weaknesses] == ["emulated", "no secure boot"]


def test_file_describes_another_board(write):
    board = load_board(write(GOOD))
    assert (board.name, board.heap_bytes, board.weaknesses) == ("my-board", 2 << 20, ())


BROKEN = {
    "no TOML": ("[my-board", "expected board profiles"),
    "not UTF-8": ("\udcff", "expected board profiles"),
    "no table": ("a = 1", "expected board profiles"),
    "a field is missing": (GOOD.replace("rpmb = true\n", ""), "rpmb"),
    "an unknown field": (GOOD + "colour = 'red'\n", "colour"),
    "a wrong type": (GOOD.replace("rpmb = true", "rpmb = 1"), "rpmb"),
    "an unknown suite": (GOOD.replace("AES-256-GCM", "AES-128-CBC"), "suite"),
    "a tiny heap": (GOOD.replace("2_097_152", "4096"), "heap_bytes"),
    "a negative heap": (GOOD.replace("2_097_152", "-1"), "heap_bytes"),
    "no shared memory": (GOOD.replace("1_048_576", "0"), "shared_bytes"),
    "a name that make would run": (GOOD.replace("[my-board]", '["$(shell id)"]'), "name"),
    "a name that is too long": (GOOD.replace("my-board", "a" * 32), "name"),
    "a name twice": (GOOD.replace("title", 'name = "other"\ntitle'), "name"),
    "options of the compiler": (GOOD.replace("armv8-a+crypto", "armv8-a -B/tmp"), "march"),
    "two boards": (GOOD + GOOD.replace("my-board", "another"), "expected one board, but got 2"),
    "no board": ("", "expected one board, but got 0"),
}


@pytest.mark.parametrize(("text", "says"), BROKEN.values(), ids=BROKEN)
def test_bad_file_is_the_users_and_says_where(text, says, tmp_path):
    path = tmp_path / "board.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=says) as caught:
        load_board(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["rpi9", "", "RPI3", "rpi3.tom"])
def test_unknown_board_lists_the_known_ones(name):
    with pytest.raises(UserError, match=f"no board `{name}`") as caught:
        load_board(name)
    assert "qemu-virt, rpi3" in caught.value.hint


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_board(str(tmp_path / "no.toml"))
