"""Which devices a node is to use: what `--device` says, held against what is there."""

import re
from dataclasses import dataclass

from sllm.errors import DeviceUnavailable, InvalidArgument
from sllm.node.device.driver import CudaError, Driver, load_driver

_CUDA = re.compile(r"cuda(?::(?P<indices>\d+(?:,\d+)*))?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    cuda: bool
    """False: the CPU alone."""
    indices: tuple[int, ...] = ()
    """Of the devices, in CUDA's order; empty: all there are."""
    required: bool = True
    """Whether it is an error that there is none."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Devices that are there."""

    driver: Driver
    indices: tuple[int, ...]
    """At least one."""
    required: bool = True
    """Whether it is an error that they cannot be used."""


def parse_device(text: str) -> Wanted:
    """What `--device` asks for: "cpu", "cuda", "cuda:0,1" or "auto".

    Raises:
        InvalidArgument: it is none of these.
    """
    if text in ("cpu", "auto"):
        return Wanted(cuda=text == "auto", required=False)
    found = _CUDA.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"device is 'cpu', 'cuda', 'cuda:0,1' or 'auto', not {text!r}")
    indices = tuple(map(int, (found["indices"] or "").split(","))) if found["indices"] else ()
    if len(set(indices)) < len(indices):
        raise InvalidArgument(f"device {text!r} names a device twice")
    return Wanted(cuda=True, indices=indices)


def select(wanted: Wanted) -> Selected | None:
    """The devices that were asked for; None: the CPU.

    It starts CUDA in this process, if there is a driver and it may be wanted.

    Raises:
        DeviceUnavailable: there is no driver, no device, or none of an index.
    """
    if not wanted.cuda:
        return None
    try:
        driver = load_driver()
        count = driver.device_count
    except (DeviceUnavailable, CudaError) as error:
        if wanted.required:
            raise DeviceUnavailable(str(error)) from error
        return None
    return _within(wanted, driver, count)


def _within(wanted: Wanted, driver: Driver, count: int) -> Selected | None:
    indices = wanted.indices or tuple(range(count))
    missing = [index for index in indices if index >= count]
    if missing or (wanted.required and not indices):
        named = f"no device {missing[0]}" if missing else "no device"
        raise DeviceUnavailable(
            f"{named}: this machine has {count} CUDA devices, numbered from 0; name others, or "
            "run the node with --device cpu"
        )
    return Selected(driver, indices, wanted.required) if indices else None
