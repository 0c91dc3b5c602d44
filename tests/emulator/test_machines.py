import pytest

from cloister import emulator
from cloister.boards import load_boards
from cloister.emulator.build import guest
from cloister.emulator.machines import Images
from cloister.emulator.rpi3 import Rpi3
from cloister.emulator.virt import Virt
from cloister.enclave.connect import connect
from cloister.enclave.instructions import VARIABLE
from cloister.errors import UserError

MACHINES = pytest.mark.parametrize("machine", emulator.MACHINES.values(), ids=emulator.MACHINES)


@MACHINES
def test_a_machine_is_a_board_with_a_part_of_its_own_in_the_guest(machine):
    assert machine.profile == load_boards()[machine.board]
    assert all(path.is_file() for path in guest(machine.name))


@pytest.mark.parametrize(("wanted", "processor"), [("", "cortex-a76"), ("neon", "cortex-a76"), ("i8mm", "max,sve=off")])
def test_the_processor_has_the_instructions_that_are_asked_for(wanted, processor, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, wanted)
    (tmp_path / "initrd").touch()
    arguments = Virt().arguments(Images(tmp_path, tmp_path / "kernel", tmp_path / "initrd"), tmp_path)
    assert arguments[arguments.index("-cpu") + 1] == processor


def test_the_lines_of_two_worlds_on_one_console(tmp_path):
    optee = [b"I/TC: OP-TEE version\r\n", b"\xb2E/TC:? 0 a b\r\n", b"D/LD:  x\r\n", b"E/TA:  y\r\n"]
    linux = [b"\xb2[    1.0] I/O error\r\n", b"[    1.1] A/TC: no\r\n", b"cloister-host: cannot open\r\n"]
    both = [line for pair in zip(optee, [*linux, b"last"], strict=True) for line in pair]
    (tmp_path / "console.log").write_bytes(b"".join(both))
    assert Rpi3().log(tmp_path, "optee") == b"".join(optee)
    assert Rpi3().log(tmp_path, "linux") == b"".join(linux) + b"last"


def test_a_machine_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no machine `rpi9`") as caught:
        connect("emulator:rpi9", None, store_range=(0, 0), payload_bytes=0, heap_bytes=0)
    assert "virt, rpi3" in caught.value.hint
