"""fastenh live: from the microphone to the headphones."""

from __future__ import annotations

import threading
import time
from typing import Any

import click
import torch

from fastenh.audio import devices
from fastenh.audio.files import MAX_CHANNELS
from fastenh.cli.errors import one_line
from fastenh.cli.interrupts import stoppable
from fastenh.cli.keys import pressed
from fastenh.cli.options import atten_lim_option, vad_option
from fastenh.cli.terminal import Terminal
from fastenh.enhance.duplex import Duplex, Reading
from fastenh.enhance.enhancer import BANDWIDTHS, Enhancer
from fastenh.enhance.live import RATES
from fastenh.errors import ProcessingError

MODEL = "dpt_complex-live"
_LOOK = 0.1  # seconds from look to look
_LINE = 5.0  # seconds from line to line where nobody looks at a terminal
_BAR, _QUIETEST = 12, -60.0  # characters and dBFS of a meter


@click.command("live")
@click.option("--list", "lists", is_flag=True, help="List the devices and exit.")
@click.option(
    "--input", "source", help="Microphone: a number from --list, or part of its name.  [default: the system's]"
)
@click.option(
    "--output", "target", help="Headphones or a virtual cable, named in the same way.  [default: the system's]"
)
@click.option(
    "--model", default=MODEL, show_default=True, help="A causal model that is shipped, or a checkpoint of one."
)
@click.option("--rate", type=click.IntRange(*RATES), help="Sample rate in Hz.  [default: that of the microphone]")
@click.option(
    "--channels", default=1, show_default=True, type=click.IntRange(1, MAX_CHANNELS), help="Channels of the microphone."
)
@atten_lim_option
@click.option(
    "--bandwidth",
    default="full",
    show_default=True,
    type=click.Choice(BANDWIDTHS),
    help="Keep what is above 8 kHz where there is speech, or remove it, which saves 32 ms.",
)
@vad_option
@click.option(
    "--block", default=10.0, show_default=True, type=click.FloatRange(1, 200), help="Block of the device, in ms."
)
@click.option(
    "--cushion",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0, 2000),
    help="Milliseconds by which the model may be late.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the model.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after this many seconds.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def command(
    lists: bool,
    source: str | None,
    target: str | None,
    model: str,
    rate: int | None,
    channels: int,
    atten_lim: float | None,
    bandwidth: str,
    vad: bool,
    block: float,
    cushion: float,
    threads: int,
    seconds: float | None,
    quiet: bool,
) -> None:
    """Take the noise out of a microphone's sound while somebody speaks.

    The space bar switches between the enhanced sound and the original, with the same delay; q or Ctrl-C ends. Use
    headphones, since the microphone would hear a loudspeaker. docs/live.md explains how other programs get the sound.
    """
    console = Terminal(quiet=quiet)
    with one_line():
        if lists:
            for line in devices.listing():
                click.echo(line)
            return
        microphone, headphones = devices.find(source, "input"), devices.find(target, "output")
        rate = rate or round(microphone["default_samplerate"])
        torch.set_num_threads(threads)
        enhancer = Enhancer.from_pretrained(model, "cpu", "float32", bandwidth=bandwidth, vad=vad, live=True)
        live = enhancer.live(rate, channels, atten_lim)
        live.feed(torch.zeros(channels, rate // 4).numpy())  # the first calls take longer
        live.reset()
        duplex = Duplex(live, (block + cushion) / 1000)
        console.print(f"{microphone['name']} -> {model} -> {headphones['name']}: {rate} Hz, {channels} in")
        console.print(f"{1000 * duplex.latency / rate:.0f} ms, and those of the device; space: bypass, q: end")
        outputs = max(channels, min(2, headphones["max_output_channels"]))
        module = devices.sounddevice()
        gone = threading.Event()
        try:
            with (
                stoppable() as stop,
                duplex,
                module.Stream(
                    samplerate=rate,
                    blocksize=round(block * rate / 1000),
                    device=(microphone["index"], headphones["index"]),
                    channels=(channels, outputs),
                    dtype="float32",
                    latency="low",
                    callback=duplex.callback,
                    finished_callback=gone.set,
                ),
            ):
                _watch(duplex, console, stop, gone, atten_lim, seconds)
        except module.PortAudioError as error:
            raise ProcessingError(f"the device refuses: {str(error).splitlines()[0]}") from error
        console.print(_summary(duplex.reading))


def _watch(
    duplex: Duplex,
    console: Terminal,
    stop: threading.Event,
    gone: threading.Event,
    atten_lim: float | None,
    seconds: float | None,
) -> None:
    """Show the levels and obey the keys until the sound ends."""
    share, said = duplex.live.share, time.monotonic()
    with pressed() as key:
        while not stop.is_set() and (seconds is None or duplex.reading.seconds < seconds):
            if duplex.error is not None:
                raise ProcessingError(str(duplex.error)) from duplex.error
            if gone.is_set():
                raise ProcessingError("the device has gone")
            match key():
                case " ":
                    duplex.live.share = share if duplex.live.share == 1.0 else 1.0
                case "q":
                    break
            line = _line(duplex.reading, duplex.live.share == 1.0)
            if console.is_terminal and not console.quiet:
                click.echo(f"\r{line}", nl=False, err=True)  # the console would show what moves the cursor
            elif time.monotonic() - said > _LINE:
                said = time.monotonic()
                console.print(line)
            stop.wait(_LOOK)
    if console.is_terminal and not console.quiet:
        click.echo(err=True)


def _line(reading: Reading, bypassed: bool) -> str:
    lost = reading.underruns + reading.overruns + sum(reading.device.values())
    state = "BYPASS" if bypassed else "      "
    return (
        f"in {_meter(reading.input_db)} out {_meter(reading.output_db)} "
        f"factor {reading.real_time_factor:.2f} dropouts {lost} {state}"
    )


def _meter(level: float) -> str:
    filled = round(_BAR * min(1.0, max(0.0, 1 - level / _QUIETEST)))
    return f"[{'#' * filled}{' ' * (_BAR - filled)}] {level:6.1f} dB"


def _summary(reading: Reading) -> str:
    parts: list[Any] = [f"{reading.seconds:.1f} s, real-time factor {reading.real_time_factor:.3f}"]
    parts.append(f"{reading.underruns} underruns ({reading.silent_frames} frames of silence)")
    parts.append(f"{reading.overruns} overruns ({reading.lost_frames} frames lost)")
    parts += [f"{count} x {kind.replace('_', ' ')} of the device" for kind, count in sorted(reading.device.items())]
    return ", ".join(parts)
