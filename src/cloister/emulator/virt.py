"""The machine `virt`: QEMU's virt board with secure RAM, Debian's OP-TEE, and TF-A built for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from cloister.emulator import build
from cloister.emulator.machines import Images, Machine, in_option

__all__ = ["Virt"]

_PLATFORM = "vexpress-qemu_armv8a"
#: Where QEMU puts kernel and initrd: clear of OP-TEE's shared memory at 0x42000000.
_KERNEL_AT, _INITRD_AT = 0x44000000, 0x4A000000
#: Where the firmware package lies behind BL1 in the flash.
_FIP_AT = 0x40000
#: No address-space randomisation and no self-tests of ciphers: less to wait for, and the same every time.
_KERNEL_WORDS = "console=ttyAMA0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests rdinit=/init"


class Virt(Machine):
    """See `Machine`."""

    name = "virt"
    board = "qemu-virt"
    suite = "trixie"
    packages = (
        "optee-os",
        "optee-os-dev",
        "optee-client-dev",
        "tee-supplicant",
        "libteec2",
        "libc6",
        "busybox-static",
    )
    kernel = "linux-image-cloud-arm64"
    sources = ("arm-trusted-firmware", "mbedtls")
    modules = ("tee", "optee", "virtio_blk")
    n_ports = 4

    def build_firmware(self, packages: Path, target: Path) -> None:
        """Build `flash.bin`: TF-A's BL1, and behind it BL2, BL31 and OP-TEE. BL33 is Linux, put into RAM by QEMU."""
        optee = packages / "optee-os/usr/lib/optee" / _PLATFORM
        # Its build writes into its sources, too.
        work = shutil.copytree(packages / "src/arm-trusted-firmware", target / "work", symlinks=True)
        build.make(
            work,
            "the firmware",
            PLAT="qemu",
            DEBUG=0,
            LOG_LEVEL=20,
            SPD="opteed",
            QEMU_USE_GIC_DRIVER="QEMU_GICV3",
            BL32_RAM_LOCATION="tdram",
            BL32=optee / "tee-header_v2.bin",
            BL32_EXTRA1=optee / "tee-pager_v2.bin",
            BL32_EXTRA2=optee / "tee-pageable_v2.bin",
            ARM_LINUX_KERNEL_AS_BL33=1,
            PRELOADED_BL33_BASE=f"{_KERNEL_AT:#x}",
            BUILD_BASE=work / "build",
            targets="all fip",
        )
        built = work / "build/qemu/release"
        first = (built / "bl1.bin").read_bytes()
        assert len(first) <= _FIP_AT
        (target / "flash.bin").write_bytes(first.ljust(_FIP_AT, b"\0") + (built / "fip.bin").read_bytes())
        shutil.rmtree(work)

    def build_programs(self, packages: Path, firmware: Path, target: Path) -> None:
        """See `Machine.build_programs`."""
        build.build_programs(
            self.profile,
            kit=packages / "optee-os-dev/usr/lib/optee-os-dev" / _PLATFORM,
            client=packages / "optee-client-dev",
            teec=packages / "libteec2",
            mbedtls=packages / "src/mbedtls",
            target=target,
        )

    def arguments(self, images: Images, folder: Path) -> list[str]:
        """See `Machine.arguments`."""
        shared = self.profile.shared_bytes
        # A Cortex-A76 has no SMMLA. With SVE, which `max` would have as well, the machine does not answer.
        processor = "max,sve=off" if "i8mm" in self.profile.march else "cortex-a76"
        words = f"{_KERNEL_WORDS} initrd={_INITRD_AT:#x},{images.initrd.stat().st_size} cloister.shared={shared}"
        storage = in_option(folder / "storage.img")
        ports = [
            word
            for n in range(self.n_ports)
            for word in (
                *("-chardev", f"socket,id=port{n},path=port{n},server=on,wait=off"),
                *("-device", f"virtserialport,chardev=port{n},name=cloister.{n}"),
            )
        ]
        return [
            *("-machine", "virt,secure=on,gic-version=3", "-cpu", processor, "-smp", "1", "-m", "512"),
            *("-bios", str(images.firmware / "flash.bin")),
            # Only beside a kernel QEMU takes a command line; the one that runs is among what is loaded.
            *("-kernel", "/dev/null", "-append", words),
            *("-chardev", "file,id=linux,path=linux.log,append=on", "-serial", "chardev:linux"),
            *("-chardev", "file,id=optee,path=optee.log,append=on", "-serial", "chardev:optee"),
            *("-drive", f"if=none,id=storage,file={storage},format=raw,werror=report"),
            *("-device", "virtio-blk-pci,drive=storage"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", "pipe,id=control,path=control"),
            *("-device", "virtserialport,chardev=control,name=cloister.control"),
            *ports,
        ]

    def loads(self, images: Images) -> list[str]:
        """See `Machine.loads`."""
        return [
            *("-device", f"loader,file={in_option(images.kernel)},addr={_KERNEL_AT:#x},force-raw=on"),
            *("-device", f"loader,file={in_option(images.initrd)},addr={_INITRD_AT:#x},force-raw=on"),
        ]
