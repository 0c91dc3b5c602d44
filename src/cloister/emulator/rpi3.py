"""The machine `rpi3`: QEMU's Raspberry Pi 3B with OP-TEE and TF-A built for the board.

The board has no RAM that Linux cannot read, so nothing is hidden inside: it is for trying what runs on a real one.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from cloister.emulator import build, hosttools
from cloister.emulator.machines import Images, Machine, World, in_option
from cloister.emulator.qemu import monitor

__all__ = ["Rpi3", "add_optee"]

#: Where QEMU puts device tree, kernel and initrd; the first two are where TF-A looks for them.
_TREE_AT, _KERNEL_AT, _INITRD_AT = 0x01000000, 0x02000000, 0x20000000
#: What belongs to firmware and OP-TEE, and what OP-TEE shares with Linux: address, bytes.
_RESERVED = {
    "tf-a@0": (0x00000000, 0x00200000),
    "optee-shared@8000000": (0x08000000, 0x00400000),
    "optee@10000000": (0x10000000, 0x01000000),
}
#: What lies above belongs to the graphics processor.
_MEMORY_BYTES = 0x3B000000
#: TF-A tells Linux that the counter runs at the board's 19.2 MHz.
_COUNTER_HZ = 19_200_000
#: One core: others would only wait. No address-space randomisation and no self-tests of ciphers: less to wait for.
_KERNEL_WORDS = "console=ttyS1,115200 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests maxcpus=1 rdinit=/init"
_TREE = "rpi3.dtb"
_POLL_SECONDS = 0.01
#: What a core that has just been switched on writes comes first.
_OPTEE_LINE = re.compile(rb"[^ -~]*[DEFIM]/(?:TC|LD|TA)")


class Rpi3(Machine):
    """See `Machine`."""

    name = "rpi3"
    board = "rpi3"
    suite = "trixie"
    packages = ("optee-client-dev", "tee-supplicant", "libteec2", "libc6", "busybox-static")
    kernel = "linux-image-arm64"
    sources = ("arm-trusted-firmware", "mbedtls")
    sid_sources = ("optee-os",)
    modules = (
        *("tee", "optee"),
        *("usb-common", "usbcore", "udc-core", "phy-generic", "dwc2", "usbserial", "ftdi_sio"),
        *("scsi_common", "scsi_mod", "sd_mod", "usb-storage"),
        *("crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"),
    )
    logs = ("console.log",)
    n_ports = 1
    tools = hosttools.BUILDING_OPTEE

    def build_firmware(self, packages: Path, target: Path) -> None:
        """Build `armstub8.bin`, TF-A with OP-TEE in it, and `kit`, the TA dev kit of that OP-TEE."""
        work = target / "work"
        optee = shutil.copytree(packages / "src/optee-os", work / "optee-os", symlinks=True)
        build.make(
            optee,
            "OP-TEE",
            PLATFORM=self.profile.platform,
            CROSS_COMPILE64=hosttools.CROSS_COMPILE,
            PYTHON3=hosttools.PYTHON,
            CFG_ARM64_core="y",
            CFG_USER_TA_TARGETS="ta_arm64",
            CFG_TEE_CORE_LOG_LEVEL=2,
            O=work / "optee",
        )
        shutil.copytree(work / "optee/export-ta_arm64", target / "kit")
        self._build_tfa(packages, work)
        shutil.copyfile(work / "tf-a/build/rpi3/release/armstub8.bin", target / "armstub8.bin")
        shutil.rmtree(work)

    def _build_tfa(self, packages: Path, work: Path) -> None:
        core = work / "optee/core"
        sources = shutil.copytree(packages / "src/arm-trusted-firmware", work / "tf-a", symlinks=True)
        build.make(
            sources,
            "the firmware",
            PLAT="rpi3",
            DEBUG=0,
            LOG_LEVEL=20,
            SPD="opteed",
            BL32=core / "tee-header_v2.bin",
            BL32_EXTRA1=core / "tee-pager_v2.bin",
            BL32_EXTRA2=core / "tee-pageable_v2.bin",
            RPI3_DIRECT_LINUX_BOOT=1,
            PRELOADED_BL33_BASE=f"{_KERNEL_AT:#x}",
            RPI3_PRELOADED_DTB_BASE=f"{_TREE_AT:#x}",
            BUILD_BASE=sources / "build",
            targets="all fip",
        )

    def build_programs(self, packages: Path, firmware: Path, target: Path) -> None:
        """See `Machine.build_programs`."""
        build.build_programs(
            self.profile,
            kit=firmware / "kit",
            client=packages / "optee-client-dev",
            teec=packages / "libteec2",
            mbedtls=packages / "src/mbedtls",
            target=target,
        )

    def finish(self, packages: Path, target: Path) -> None:
        """Make the device tree: Debian's, with OP-TEE and what QEMU's firmware would have put into it."""
        tree = target / _TREE
        (found,) = (packages / "linux/usr/lib").glob("linux-image-*/broadcom/bcm2837-rpi-3-b.dtb")
        shutil.copyfile(found, tree)
        add_optee(tree)
        end = _INITRD_AT + (target / "initrd.cpio").stat().st_size
        _put(tree, "/chosen", "bootargs", f"{_KERNEL_WORDS} cloister.shared={self.profile.shared_bytes}")
        _put(tree, "/chosen", "linux,initrd-start", _INITRD_AT)
        _put(tree, "/chosen", "linux,initrd-end", end)
        _put(tree, "/memory@0", "reg", 0, _MEMORY_BYTES)
        # Otherwise Linux keeps this UART for Bluetooth.
        _edit("-r", tree, "/soc/serial@7e201000/bluetooth")

    def arguments(self, images: Images, folder: Path) -> list[str]:
        """See `Machine.arguments`. Nothing has virtio here: requests come over the UART, all else over USB."""
        storage = in_option(folder / "storage.img")
        return [
            *("-machine", "raspi3b", "-global", "bcm2837.enabled-cpus=1"),
            *("-global", f"cortex-a53-arm-cpu.cntfrq={_COUNTER_HZ}"),
            *("-chardev", "pipe,id=control,path=control", "-serial", "chardev:control"),
            *("-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console"),
            *("-device", "usb-hub,port=1"),
            *("-drive", f"if=none,id=storage,file={storage},format=raw,werror=report"),
            *("-device", "usb-storage,drive=storage,port=1.2"),
            *("-chardev", "socket,id=port0,path=port0,server=on,wait=off"),
        ]

    def loads(self, images: Images) -> list[str]:
        """See `Machine.loads`."""
        files = {
            images.firmware / "armstub8.bin": 0,
            images.initrd.with_name(_TREE): _TREE_AT,
            images.kernel: _KERNEL_AT,
            images.initrd: _INITRD_AT,
        }
        loaders = [f"loader,file={in_option(path)},addr={at:#x},force-raw=on" for path, at in files.items()]
        return [word for loader in loaders for word in ("-device", loader)]

    def log(self, folder: Path, world: World) -> bytes:
        """See `Machine.log`. Both worlds write to one serial line; OP-TEE's lines are known by how they begin."""
        lines = (folder / "console.log").read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if bool(_OPTEE_LINE.match(line)) == (world == "optee"))

    def plug_in(self, folder: Path) -> None:
        """Plug in the serial line: QEMU cannot save its state."""
        with monitor(folder) as ask:
            while ask("query-status")["status"] == "inmigrate":
                time.sleep(_POLL_SECONDS)
            ask("device_add", driver="usb-serial", chardev="port0", port="1.1", **{"always-plugged": True})


def add_optee(tree: Path) -> None:
    """Tell Linux of OP-TEE and PSCI in a device tree of this board, and keep it from their memory.

    Raises:
        EnclaveUnavailable: the tree is another board's.
    """
    _put(tree, "/psci", "compatible", "arm,psci-1.0", "arm,psci-0.2")
    _put(tree, "/psci", "method", "smc")
    _put(tree, "/firmware/optee", "compatible", "linaro,optee-tz")
    _put(tree, "/firmware/optee", "method", "smc")
    for core in range(4):
        _put(tree, f"/cpus/cpu@{core}", "enable-method", "psci")
        _edit("-d", tree, f"/cpus/cpu@{core}", "cpu-release-addr")
    for name, (address, n_bytes) in _RESERVED.items():
        _put(tree, f"/reserved-memory/{name}", "reg", address, n_bytes)
        _put(tree, f"/reserved-memory/{name}", "no-map")


def _put(tree: Path, node: str, name: str, *values: str | int) -> None:
    """Set a property, with its node if that is missing."""
    numbers = bool(values) and isinstance(values[0], int)
    words = [f"{value:x}" if isinstance(value, int) else value for value in values]
    _edit("-p", "-t", "x" if numbers else "s", tree, node, name, *words)


def _edit(*words: str | Path) -> None:
    hosttools.run_tool(["fdtput", *words], "the device tree cannot be edited")
