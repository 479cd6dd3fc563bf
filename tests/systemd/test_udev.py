"""What the kernel calls ttyACM0 today: a real udev applies the rules to devices that umockdev makes up."""

import re

import pytest

from agent.install import source
from agent.install.plan import UDEV_RULES
from tests.systemd.bench import Bench

pytestmark = [pytest.mark.booted, pytest.mark.slow, pytest.mark.timeout(900)]  # the first waits for debootstrap

HUB = "/devices/pci0000:00/0000:00:14.0/usb1"


def board(vendor: str, product: str, serial: str | None) -> tuple[str, str]:
    """A controller board on the second socket of the first hub: umockdev's description, and the path of its port."""
    port = f"{HUB}/1-2/1-2:1.0/tty/ttyACM0"
    described = f"""
P: {port}
N: ttyACM0
E: DEVNAME=/dev/ttyACM0
E: MAJOR=166
E: MINOR=0
E: SUBSYSTEM=tty
A: dev=166:0

P: {HUB}/1-2/1-2:1.0
E: DEVTYPE=usb_interface
E: DRIVER=cdc_acm
E: SUBSYSTEM=usb
A: bInterfaceNumber=00
A: bInterfaceClass=02
A: bInterfaceSubClass=02
A: bInterfaceProtocol=01

P: {HUB}/1-2
N: bus/usb/001/005
E: DEVNAME=/dev/bus/usb/001/005
E: DEVTYPE=usb_device
E: MAJOR=189
E: MINOR=4
E: SUBSYSTEM=usb
A: idVendor={vendor}
A: idProduct={product}
{f"A: serial={serial}" if serial else ""}
A: product=USB Single Serial
A: bDeviceClass=02
A: devpath=2

P: {HUB}
N: bus/usb/001/001
E: DEVNAME=/dev/bus/usb/001/001
E: DEVTYPE=usb_device
E: MAJOR=189
E: MINOR=0
E: SUBSYSTEM=usb
A: idVendor=1d6b
A: idProduct=0002

P: /devices/pci0000:00/0000:00:14.0
E: SUBSYSTEM=pci
E: PCI_SLOT_NAME=0000:00:14.0
"""
    return re.sub(r"\n\n(?=A:)", "\n", described).lstrip(), port


def seen(bench: Bench, vendor: str, product: str, serial: str | None) -> dict[str, str]:
    """The properties that udev gives the port of such a board."""
    described, port = board(vendor, product, serial)
    bench.machine.path("/root/board.umockdev").write_text(described)
    bench.machine.path(UDEV_RULES).write_text(source.text("60-so-agent.rules"))
    tried = bench.machine.run(
        "umockdev-run", "--device", "/root/board.umockdev", "--", "udevadm", "test", "--action=add", f"/sys{port}"
    )
    said = tried.stdout + tried.stderr
    assert "so-agent.rules" in said
    assert not re.search(r"so-agent\.rules:\d+ (?!.*(?:LINK|GROUP|MODE|IMPORT|GOTO))", said), said  # no complaint
    return dict(line.split("=", 1) for line in said.splitlines() if re.match(r"[A-Z_]+=", line))


def test_a_board_with_a_serial_number_is_known_by_it_in_every_socket(installed: Bench) -> None:
    properties = seen(installed, "1a86", "55d3", "58FA083273")
    links = properties["DEVLINKS"].split()
    assert "/dev/so-agent/arm-58FA083273" in links
    assert "/dev/serial/by-id/usb-1a86_USB_Single_Serial_58FA083273-if00" in links
    assert properties["ID_MM_DEVICE_IGNORE"] == "1"


def test_a_board_without_one_is_known_by_its_socket(installed: Bench) -> None:
    links = seen(installed, "1a86", "7523", None)["DEVLINKS"].split()
    assert [link for link in links if link.startswith("/dev/so-agent/")] == [
        "/dev/so-agent/arm-at-pci-0000_00_14_0-usb-0_2_1_0"
    ]


def test_other_serial_devices_are_not_touched(installed: Bench) -> None:
    properties = seen(installed, "2341", "0043", "55834323233351B0D1C1")
    assert "/dev/so-agent" not in properties["DEVLINKS"]
    assert "ID_MM_DEVICE_IGNORE" not in properties
