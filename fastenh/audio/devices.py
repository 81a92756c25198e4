"""Microphones and headphones, by sounddevice (PortAudio)."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fastenh.errors import UsageError


class SoundDeviceError(UsageError):
    """sounddevice is not there, or there is no such device."""


def sounddevice() -> Any:
    """The module. Raises ``SoundDeviceError``, which says what to install."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise SoundDeviceError("live sound needs an extra: pip install 'fastenh[live]'") from error
    except OSError as error:  # PortAudio comes with sounddevice elsewhere
        needed = "; on Debian and Ubuntu: apt install libportaudio2" if sys.platform.startswith("linux") else ""
        raise SoundDeviceError(f"sounddevice finds no PortAudio library{needed}") from error


def listing() -> list[str]:
    """A line for each device, as ``find`` takes them."""
    module = sounddevice()
    apis, lines = module.query_hostapis(), []
    for index, device in enumerate(module.query_devices()):
        ways = f"{device['max_input_channels']} in, {device['max_output_channels']} out"
        marks = [
            mark for mark, chosen in zip(("input", "output"), module.default.device, strict=True) if chosen == index
        ]
        usual = f"  [default {' and '.join(marks)}]" if marks else ""
        rate = f"{device['default_samplerate']:.0f} Hz"
        lines.append(f"{index:3d}  {device['name']} ({apis[device['hostapi']]['name']}): {ways}, {rate}{usual}")
    return lines


def find(name: str | None, kind: str) -> dict[str, Any]:
    """What PortAudio says of a device: by its number, a part of its name, or the default; ``kind`` is "input" or
    "output". Raises ``SoundDeviceError``."""
    module = sounddevice()
    chosen = int(name) if name is not None and name.isdecimal() else name
    try:
        found: dict[str, Any] = dict(module.query_devices(chosen, kind))
    except (ValueError, module.PortAudioError) as error:
        what = f"no {kind} device {name!r}" if name is not None else f"no {kind} device"
        raise SoundDeviceError(f"{what} ({str(error).splitlines()[0]}); fastenh live --list names them") from error
    return found
