"""fastenh live with devices that are not there: late, early and odd blocks, and what is lost and caught up with."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import types

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import noise, voice
from live_models import causal_checkpoint, causal_model

from fastenh import Enhancer
from fastenh.audio import devices
from fastenh.cli import keys, main
from fastenh.enhance.duplex import Duplex, Queue
from fastenh.enhance.live import LiveEnhancer

RATE = 16_000
BLOCK, CUSHION = 0.01, 0.02


class Device:
    """Plays ``sound`` to a callback in blocks of given sizes and records what comes back; no clock but ours."""

    def __init__(self, duplex, sound):
        self.duplex, self.sound, self.place, self.heard = duplex, sound, 0, []

    def call(self, frames, wait=True, status=None):
        """A block; ``wait``: the model is on time for the next one."""
        given = self.sound[self.place : self.place + frames, None].copy()
        out = np.full((len(given), 2), np.nan, np.float32)
        self.duplex.callback(given, out, len(given), None, status)
        given[:] = np.nan  # the device's own again
        self.place += len(given)
        self.heard.append(out)
        if wait:
            self.settle()

    def settle(self):
        deadline = time.monotonic() + 20
        while self.duplex.waiting or self.duplex._changed.is_set() or self.duplex.is_busy:
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def result(self):
        return np.concatenate(self.heard)


@pytest.fixture(scope="module")
def enhancer():
    return Enhancer(causal_model(), "cpu")


@pytest.fixture
def sound():
    return (voice(RATE) + noise(RATE)).astype(np.float32)


@pytest.fixture
def expected(enhancer, sound):
    """What must be heard, but for dropouts, ``latency`` frames after the start."""

    def heard(duplex, length):
        live = enhancer.live(RATE)
        made = np.concatenate([live.feed(sound), live.finish()], axis=1)[0]
        return np.concatenate([np.zeros(duplex.latency, np.float32), made])[:length]

    return heard


def sizes(total, seed=0):
    rng = np.random.default_rng(seed)
    while total > 0:
        size = int(rng.choice([1, 7, 64, 160, 160, rng.integers(1, 320)]))
        yield min(size, total)
        total -= size


def test_odd_blocks_on_time(enhancer, sound, expected):
    with Duplex(enhancer.live(RATE), BLOCK + CUSHION) as duplex:
        device = Device(duplex, sound)
        for size in sizes(len(sound)):
            device.call(size)
    heard = device.result()
    np.testing.assert_allclose(heard[:, 0], expected(duplex, len(heard)), atol=1e-6)
    np.testing.assert_array_equal(heard[:, 0], heard[:, 1])
    assert (duplex.reading.underruns, duplex.reading.overruns) == (0, 0)
    assert duplex.reading.seconds == pytest.approx(1.0)
    assert duplex.reading.real_time_factor > 0
    assert -40 < duplex.reading.input_db < 0


def test_early_blocks_wait_within_the_cushion(enhancer, sound, expected):
    """Two blocks at once, where the model has no time between them."""
    with Duplex(enhancer.live(RATE), BLOCK + CUSHION) as duplex:
        device = Device(duplex, sound)
        for number in range(len(sound) // 160):
            device.call(160, wait=number % 2 == 1)
    assert duplex.reading.underruns == 0
    np.testing.assert_allclose(device.result()[:, 0], expected(duplex, len(sound)), atol=1e-6)


class Slow:
    """A live enhancer that stands still while it is told to."""

    def __init__(self, live):
        self._live, self.goes = live, threading.Event()
        self.goes.set()

    def __getattr__(self, name):
        return getattr(self._live, name)

    def feed(self, block):
        assert self.goes.wait(20)
        return self._live.feed(block)


def test_a_late_model_is_an_underrun_and_is_caught_up_with(enhancer, sound, expected):
    slow = Slow(enhancer.live(RATE))
    with Duplex(slow, BLOCK + CUSHION) as duplex:
        device = Device(duplex, sound)
        for _ in range(30):
            device.call(160)
        slow.goes.clear()
        for _ in range(20):  # 0.2 s
            device.call(160, wait=False)
        slow.goes.set()
        device.settle()
        for _ in range(50):
            device.call(160)
    heard, right = device.result()[:, 0], expected(duplex, len(sound))
    reading = duplex.reading
    assert 10 <= reading.underruns <= 20
    assert reading.overruns == 0
    silent = np.flatnonzero(~np.isclose(heard, right, atol=1e-6))
    assert not heard[silent].any()  # where it is not the sound it is silence
    assert silent.min() >= 30 * 160
    assert silent.max() < 50 * 160
    assert reading.silent_frames >= len(silent)


def test_input_without_room_is_an_overrun_and_time_is_kept(sound):
    slow = Slow(types.SimpleNamespace(sample_rate=RATE, channels=1, delay=256, feed=lambda block: block))
    with Duplex(slow, BLOCK + CUSHION, backlog=0.1) as duplex:
        device = Device(duplex, sound)
        for _ in range(20):
            device.call(160)
        slow.goes.clear()
        for _ in range(30):
            device.call(160, wait=False)
        slow.goes.set()
        device.settle()
        for _ in range(50):
            device.call(160)
    heard, reading = device.result()[:, 0], duplex.reading
    assert reading.overruns >= 9  # the model may take ten blocks before it stands still, and ten more wait
    assert reading.lost_frames >= 9 * 160
    settled = slice(60 * 160, None)
    right = np.concatenate([np.zeros(duplex.latency, np.float32), sound])[: len(heard)]
    np.testing.assert_array_equal(heard[settled], right[settled])
    assert duplex._late == 0


def test_what_the_device_tells_is_counted(enhancer, sound):
    status = types.SimpleNamespace(input_overflow=True, output_underflow=True, input_underflow=False)
    with Duplex(enhancer.live(RATE), BLOCK + CUSHION) as duplex:
        Device(duplex, sound).call(160, status=status)
    assert duplex.reading.device == {"input_overflow": 1, "output_underflow": 1}


def test_a_queue_is_bounded():
    queue = Queue(1, 10)
    assert queue.put(np.ones((1, 7), np.float32)) == 0
    assert queue.put(np.ones((1, 7), np.float32)) == 4
    assert queue.take(8).shape == (1, 8)
    assert queue.take(8).shape == (1, 2)
    assert queue.frames == 0


class FakeSoundDevice(types.ModuleType):
    """A stand-in for sounddevice: two devices, and a stream whose thread calls back in odd blocks, early and late."""

    class PortAudioError(Exception):
        pass

    def __init__(self):
        super().__init__("sounddevice")
        self.default = types.SimpleNamespace(device=(0, 1))
        self.fails, self.stops_after, self.streams = False, 10**9, []
        self.Stream = lambda **options: FakeStream(self, **options)

    def query_hostapis(self):
        return ({"name": "Fake"},)

    def query_devices(self, device=None, kind=None):
        known = [
            {"name": "Mic", "max_input_channels": 1, "max_output_channels": 0},
            {"name": "Phones", "max_input_channels": 0, "max_output_channels": 2},
        ]
        for index, entry in enumerate(known):
            entry |= {"index": index, "hostapi": 0, "default_samplerate": 48_000.0}
        if kind is None:
            return known
        usable = [entry for entry in known if entry[f"max_{kind}_channels"]]
        matching = [entry for entry in usable if device in (None, entry["index"]) or str(device) in entry["name"]]
        if not matching:
            raise ValueError(f"No {kind} device matching {device!r}")
        return matching[0]


class FakeStream:
    def __init__(self, module, **options):
        if module.fails:
            raise module.PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        self.options, self.module, self.blocks = options, module, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        module.streams.append(self)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()
        self.options["finished_callback"]()

    def _run(self):
        rng = np.random.default_rng(0)
        inputs, outputs = self.options["channels"]
        while not self._stopped.is_set() and self.blocks < self.module.stops_after:
            frames = int(rng.choice([self.options["blocksize"], 33, 1000]))
            out = np.full((frames, outputs), np.nan, np.float32)
            given = rng.standard_normal((frames, inputs)).astype(np.float32) * 0.1
            self.options["callback"](given, out, frames, None, None)
            assert np.isfinite(out).all()
            self.blocks += 1
            time.sleep(float(rng.choice([0.0, 0.002, 0.02])))
        if not self._stopped.is_set():
            self.options["finished_callback"]()


@pytest.fixture
def fake(monkeypatch):
    module = FakeSoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return causal_checkpoint(tmp_path_factory.mktemp("weights"))


def call(*arguments, code=0):
    done = CliRunner().invoke(main, ["live", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_the_command_from_device_to_device(fake, weights):
    output = call("--model", weights, "--seconds", 1, "--atten-lim", 12)
    assert "Mic -> " in output
    assert "97 ms, and those of the device" in output
    assert "underruns" in output
    assert "real-time factor" in output
    (stream,) = fake.streams
    assert stream.options["channels"] == (1, 2)
    assert (stream.options["samplerate"], stream.options["blocksize"]) == (48_000, 480)
    assert stream.options["device"] == (0, 1)
    assert stream.blocks > 10


def test_bypass_and_end_by_keys(fake, weights, monkeypatch):
    pressed, shares = iter(["", " ", "", " ", "q"]), []

    @contextlib.contextmanager
    def some():
        yield lambda: next(pressed)

    monkeypatch.setattr("fastenh.cli.live.pressed", some)
    real = Duplex.callback

    def watched(self, *arguments):
        shares.append(self.live.share)
        real(self, *arguments)

    monkeypatch.setattr(Duplex, "callback", watched)
    call("--model", weights)
    assert {0.0, 1.0} == set(shares)
    assert shares[-1] == 0.0


def test_devices_are_listed_and_chosen(fake, weights):
    assert call("--list").splitlines() == [
        "  0  Mic (Fake): 1 in, 0 out, 48000 Hz  [default input]",
        "  1  Phones (Fake): 0 in, 2 out, 48000 Hz  [default output]",
    ]
    assert call("--model", weights, "--input", "Mic", "--output", "1", "--seconds", "0.1", "--rate", "16000")
    assert "no output device 'Tuba'" in call("--model", weights, "--output", "Tuba", code=2)


def test_what_a_device_refuses_and_one_that_goes_is_one_line(fake, weights):
    fake.fails = True
    assert call("--model", weights, code=1).splitlines()[-1].startswith("Error: the device refuses: Invalid sample")
    fake.fails, fake.stops_after = False, 5
    assert call("--model", weights, code=1).splitlines()[-1] == "Error: the device has gone"


def test_a_model_that_fails_ends_it(fake, weights, monkeypatch):
    calls = iter(range(10))

    def feed(self, block):
        if next(calls) > 2:
            raise ValueError("no sound today")
        return block[:, :0]

    monkeypatch.setattr(LiveEnhancer, "feed", feed)
    assert call("--model", weights, code=1).splitlines()[-1] == "Error: no sound today"


def test_what_is_missing_is_named(monkeypatch, tmp_path, tiny_checkpoint, fake):
    assert "dpt_complex-live can" in call("--model", tiny_checkpoint, code=1)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'fastenh[live]'" in call("--list", code=2)
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert "apt install libportaudio2" in call("--list", code=2)


def test_without_a_terminal_there_are_no_keys():
    with keys.pressed() as key:
        assert key() == ""


@pytest.mark.linux
def test_keys_of_a_terminal(monkeypatch):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with keys.pressed() as key:
            assert key() == ""
            os.write(ours, b" ")
            deadline = time.monotonic() + 5
            while not (found := key()) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert found == " "
    os.close(ours)
