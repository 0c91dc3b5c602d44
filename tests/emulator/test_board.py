"""On a board: Cloister's own Python runs in the emulator's Linux, beside a real /dev/tee0."""

import base64
import hashlib
import io
import json
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import cloister
from cloister.emulator import build, cpio
from cloister.emulator.apt import Apt
from cloister.emulator.cache import digest_of_folder
from cloister.emulator.hosttools import run_tool
from cloister.emulator.instance import Instance
from cloister.emulator.machines import Images
from cloister.emulator.start import bring_up
from cloister.emulator.virt import Virt

pytestmark = [pytest.mark.emulator, pytest.mark.xdist_group("emulator")]

#: Python as Debian has it, and the libraries that it and numpy need.
PACKAGES = (
    "python3.13-minimal",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    *("libc6", "libexpat1", "libffi8", "libgcc-s1", "libstdc++6", "zlib1g"),
)
LIBRARIES = ("libexpat.so.1", "libffi.so.8", "libgcc_s.so.1", "libpthread.so.0", "libstdc++.so.6", "libz.so.1")
#: All that a device needs of Cloister's dependencies.
WHEELS = ("numpy", "msgspec", "click", "rich")
MODULES = "usr/lib/python3/dist-packages"
PIECE_BYTES = 12 << 10


# --- The machine -----------------------------------------------------------------------------------------------------


class PythonVirt(Virt):
    """`virt` with Python and Cloister in its Linux; storage, device key and saved state are its own."""

    name = "python-virt"

    def images(self, cache, tell, *, anew):
        images = Virt().images(cache, tell, anew=anew)
        fetched = cache.made("python-packages", [PACKAGES, WHEELS], lambda new: fetch(cache, new))
        inputs = [str(images.initrd), str(fetched), digest_of_cloister()]

        def extend(new):
            build.make(
                build.native_sources() / "host",
                "the interpreter",
                O=new,
                VERSION=cloister.__version__,
                targets="core",
            )
            programs = [images.initrd.parent / "cloister-host", new / "libcloister_core.so"]
            # The kernel unpacks one archive behind the other.
            with (new / "initrd.cpio").open("wb") as file:
                file.write(images.initrd.read_bytes())
                cpio.write_archive(file, python_files(fetched) | cloister_files(programs))

        made = cache.made("python-boot", inputs, extend, anew=anew, keep=1)
        return Images(images.firmware, images.kernel, made / "initrd.cpio")


def fetch(cache, new):
    apt = Apt(cache.root / "downloads" / Virt.suite, Virt.suite)
    apt.update()
    apt.unpack(PACKAGES, new)
    options = ["--only-binary=:all:", "--python-version=3.13", "--implementation=cp", "--abi=cp313", "--abi=none"]
    options += [f"--platform={name}_aarch64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    words = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", new / "wheels", *WHEELS]
    run_tool(words, "the wheels cannot be fetched")


def python_files(fetched):
    standard = [fetched / name / "usr/lib/python3.13" for name in PACKAGES[1:3]]
    found = {
        f"usr/lib/python3.13/{path.relative_to(folder)}": path.read_bytes()
        for folder in standard
        for path in folder.rglob("*")
        if path.is_file()
    }
    found["usr/bin/python3.13"] = (fetched / PACKAGES[0] / "usr/bin/python3.13").read_bytes()
    for name in LIBRARIES:
        (path,) = fetched.glob(f"*/usr/lib/aarch64-linux-gnu/{name}")
        found[f"usr/lib/aarch64-linux-gnu/{name}"] = path.read_bytes()
    for wheel in (fetched / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            names = [name for name in file.namelist() if "/tests/" not in name and not name.endswith("/")]
            found |= {f"{MODULES}/{name}": file.read(name) for name in names}
    return {name: cpio.program(data) for name, data in found.items()}


def cloister_sources():
    root = Path(cloister.__file__).parent
    return {
        str(path.relative_to(root.parent)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".py", ".toml") and "_native" not in path.parts
    }


def cloister_files(programs):
    found = cloister_sources() | {f"cloister/_bin/{path.name}": path.read_bytes() for path in programs}
    return {f"{MODULES}/{name}": cpio.program(data) for name, data in found.items()}


def digest_of_cloister():
    whole = hashlib.sha256(repr(cloister_sources()).encode()).hexdigest()
    return [whole, digest_of_folder(build.native_sources())]


class Board:
    """A running machine, as somebody logged in as root sees it."""

    def __init__(self, instance):
        self._instance = instance

    def shell(self, command, *, seconds=600):
        return self._instance.shell(command, seconds=seconds)

    def must(self, command):
        status, said = self.shell(command)
        assert status == 0, said
        return said

    def cloister(self, *words):
        """Exit status, standard output and standard error of the command line."""
        command = shlex.join(["python3.13", "-m", "cloister", *words])
        status, said = self.shell(f"cd /tmp && HOME=/tmp {command} 2> /tmp/errors")
        return status, said, self.must("cat /tmp/errors")

    def doctor(self):
        _, said, errors = self.cloister("doctor", "-f", "json")
        assert said, errors
        return {check["name"]: check for check in json.loads(said)["checks"]}

    def put(self, name, data):
        self.must(f"rm -f /tmp/{name}")
        for start in range(0, len(data), PIECE_BYTES):
            piece = base64.b64encode(data[start : start + PIECE_BYTES]).decode()
            self.must(f"echo {piece} | base64 -d >> /tmp/{name}")

    def get(self, name):
        return base64.b64decode(self.must(f"base64 /tmp/{name}"))


@pytest.fixture(scope="module")
def board():
    instance = Instance(PythonVirt(), counting=False)
    try:
        bring_up(instance, fresh=False, progress=None)
        yield Board(instance)
    finally:
        instance.down()


# --- What works ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protected(board, tmp_path_factory):
    """A bundle for the board's key and for the local enclave; images; and what they give here."""
    folder = tmp_path_factory.mktemp("protected")
    status, _, errors = board.cloister("keys", "export", "board.pub", "--enclave", "optee", "--force")
    assert status == 0, errors
    (folder / "board.pub").write_bytes(board.get("board.pub"))
    data = cloister.load_dataset("digits")
    cloister.protect(
        cloister.load_target("zoo:vgg7", input_shape=(1, 8, 8), n_classes=10),
        folder / "vgg7.cloister",
        inside="last:3",
        budget_bytes=12 << 10,
        calibration=data.images(slice(64)),
        board="qemu-virt",
        devices=[str(folder / "board.pub"), "local"],
    )
    images = data.images(slice(20), part="test")
    with cloister.load(folder / "vgg7.cloister") as session:
        expected = session.run(images)
        assert session.stats.slices_opened > len(images)  # some stream
    board.put("vgg7.cloister", (folder / "vgg7.cloister").read_bytes())
    file = io.BytesIO()
    np.save(file, images)
    board.put("x.npy", file.getvalue())
    return expected


def test_doctor_finds_all_that_a_board_needs(board):
    found = board.doctor()
    for name in ("python", "interpreter", "optee device", "tee-supplicant", "trusted application", "its heap"):
        assert found[name]["state"] == "ok", found[name]
    assert found["trusted application"]["detail"] == f"cloister {cloister.__version__} for board qemu-virt"
    assert found["its heap"]["detail"] == "8 MiB"
    assert found["secure RAM"]["state"] == "ok"
    assert "no secure boot" in found["board"]["detail"]
    # The local enclave was left out of this machine, and torch as well.
    assert {name for name, check in found.items() if check["state"] == "fail"} == {"local enclave"}


SCRIPT = """
import sys, numpy, cloister
with cloister.load("/tmp/vgg7.cloister", enclave="optee") as session:
    outputs = session.run(numpy.load("/tmp/x.npy"))
    print(session.stats.enclave, session.stats.board, session.stats.slices_opened > len(outputs))
    print(outputs.tobytes().hex())
"""


def test_the_same_bits_as_in_the_local_enclave(board, protected):
    board.put("script.py", SCRIPT.encode())
    about, bits = board.must("python3.13 /tmp/script.py").splitlines()
    assert about == "optee qemu-virt True"
    assert bytes.fromhex(bits) == protected.tobytes()


def test_the_same_from_the_command_line(board, protected):
    options = ["--input", "x.npy", "-o", "y.npy", "--force", "--enclave", "optee", "-f", "json"]
    status, said, errors = board.cloister("run", "vgg7.cloister", *options)
    assert status == 0, errors
    assert json.loads(said)["stats"]["board"] == "qemu-virt"
    assert np.load(io.BytesIO(board.get("y.npy"))).tobytes() == protected.tobytes()


def test_a_bundle_for_another_device(board, protected, tmp_path):
    data = cloister.load_dataset("digits").images(slice(64))
    target = cloister.load_target("zoo:vgg7", input_shape=(1, 8, 8), n_classes=10)
    cloister.protect(target, tmp_path / "other.cloister", inside="last:1", calibration=data, devices=["local"])
    board.put("other.cloister", (tmp_path / "other.cloister").read_bytes())
    options = ["--input", "x.npy", "-o", "z.npy", "--enclave", "optee"]
    status, _, errors = board.cloister("run", "other.cloister", *options)
    assert status == 3
    assert "expected a bundle for this device" in errors


# --- What is missing -------------------------------------------------------------------------------------------------


@pytest.fixture
def without_supplicant(board):
    board.must("killall tee-supplicant")
    yield
    board.must("tee-supplicant > /dev/null 2>&1 &")


def test_a_supplicant_that_does_not_run_is_named_and_not_waited_for(board, protected, without_supplicant):
    check = board.doctor()["tee-supplicant"]
    assert (check["state"], check["detail"]) == ("fail", "does not run")
    assert "systemctl enable --now tee-supplicant" in check["fix"]
    status, _, errors = board.cloister("keys", "show", "--enclave", "optee")
    assert status == 3
    # Of a session that is asked for and not answered something else is said.
    assert "tee-supplicant does not run" in errors
    assert "systemctl enable --now tee-supplicant" in errors


@pytest.fixture
def without_application(board):
    board.must("mkdir /tmp/away && mv /lib/optee_armtz/*.ta /tmp/away/")
    yield
    board.must("mv /tmp/away/*.ta /lib/optee_armtz/ && rmdir /tmp/away")


def test_an_application_that_is_not_installed_is_named(board, without_application):
    check = board.doctor()["trusted application"]
    assert check["state"] == "fail"
    assert "not installed" in check["detail"]
    assert "/lib/optee_armtz" in check["fix"]
