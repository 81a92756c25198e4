"""Noise suppressors that a registry has with their weights, over a folder: see rivals.md.

usage: python rivals.py noisereduce|rnnoise|speex|webrtc NOISY OUT

It runs in an environment of its own, which needs nothing of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile


def noisereduce(x: np.ndarray, rate: int) -> np.ndarray:
    from noisereduce import reduce_noise

    return reduce_noise(y=x, sr=rate)


def rnnoise(x: np.ndarray, rate: int) -> np.ndarray:
    """It hears 48 kHz."""
    import soxr
    from pyrnnoise.rnnoise import create, destroy, process_frame

    wide, state = to_int16(soxr.resample(x, rate, 48_000)), [create()]
    out = [process_frame(state, wide[None, i : i + 480])[0] for i in range(0, len(wide) - 479, 480)]
    destroy(state[0])
    return soxr.resample(np.concatenate(out, 1)[0].astype(np.float32) / 32768, 48_000, rate)


def speex(x: np.ndarray, rate: int) -> np.ndarray:
    from speexdsp_ns import NoiseSuppression

    size = rate // 100
    suppressor = NoiseSuppression.create(size, rate)
    return by_blocks(x, size, suppressor.process)


def webrtc(x: np.ndarray, rate: int) -> np.ndarray:
    """It hears 16 kHz."""
    from webrtc_noise_gain import AudioProcessor

    processor = AudioProcessor(0, 4)  # no gain, the strongest suppression
    return by_blocks(x, rate // 100, lambda block: processor.Process10ms(block).audio)


def by_blocks(x: np.ndarray, size: int, process) -> np.ndarray:
    samples = to_int16(x)
    blocks = [samples[i : i + size].tobytes() for i in range(0, len(samples) - size + 1, size)]
    return np.concatenate([np.frombuffer(process(block), np.int16) for block in blocks])


def to_int16(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, -1, 1) * 32767).astype(np.int16)


def main(name: str, source: Path, target: Path) -> None:
    run = {"noisereduce": noisereduce, "rnnoise": rnnoise, "speex": speex, "webrtc": webrtc}[name]
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        x, rate = soundfile.read(file, dtype="float32")
        soundfile.write(target / file.name, run(x, rate), rate)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
