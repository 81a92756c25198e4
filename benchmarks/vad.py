"""The gate of --vad with the model's own judgement, and with detectors made for it, on pairs whose clean side is known:

python -m benchmarks.vad NOISY CLEAN [NOISY CLEAN ...]

A pause is a frame of 32 ms whose clean sound is 40 dB below the active level (the mean over frames within 30 dB of the
loudest), speech one that is no more than 25 dB below it, an onset speech after 0.2 s without. Speech and onsets are
"turned down" where the gate takes more than 1 dB off; "gone before" are those frames of them that the model had left
15 dB or more below the clean sound. Of webrtcvad (package
webrtcvad-wheels) and Silero VAD (silero-vad) those are compared that are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastenh import Enhancer
from fastenh.audio.files import read_mono
from fastenh.data.pairs import match_pairs
from fastenh.enhance.gate import HOP, SpeechGate

RATE, FRAME = 16_000, 512
BEFORE, SOON, LONG = 13, 6, 31  # frames: 0.2 s, 0.1 s, 0.5 s
Detector = Callable[[np.ndarray, np.ndarray], np.ndarray]  # noisy and enhanced -> whether each frame is speech


class Given(SpeechGate):
    """The gate as another detector would work it."""

    def __init__(self, decisions: np.ndarray) -> None:
        super().__init__(channels=1)
        self._decisions = iter(decisions)

    def _is_speech(self, noisy: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
        return np.array([next(self._decisions)])


def gated(gate: SpeechGate, noisy: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
    gate.hear(noisy[None])
    return gate.give(enhanced[None], last=True)[0]


def power(samples: np.ndarray) -> np.ndarray:
    """The mean square of the frames centred on each 256th sample."""
    padded = np.pad(samples, (FRAME // 2, FRAME // 2 + -samples.size % HOP))
    return np.square(np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]).mean(1)


def webrtc(mode: int, side: int) -> Detector:
    import webrtcvad

    def detect(*sides: np.ndarray) -> np.ndarray:
        samples, size = np.clip(sides[side] * 2**15, -(2**15), 2**15 - 1).astype(np.int16), RATE // 100
        padded, detector = np.pad(samples, (0, 2 * size - samples.size % size)), webrtcvad.Vad(mode)
        pieces = padded[: padded.size // size * size].reshape(-1, size)
        speech = np.array([detector.is_speech(piece.tobytes(), RATE) for piece in pieces])
        frames = np.arange(-(-samples.size // HOP) + 1) * HOP
        near = [np.minimum((frames + shift) // size, len(speech) - 1) for shift in (-FRAME // 4, 0, FRAME // 4)]
        return np.any([speech[np.maximum(place, 0)] for place in near], axis=0)

    return detect


def silero(threshold: float, side: int) -> Detector:
    import onnxruntime

    found = importlib.util.find_spec("silero_vad")
    assert found is not None
    assert found.origin is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(found.origin).parent / "data" / "silero_vad_16k_op15.onnx"
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def detect(*sides: np.ndarray) -> np.ndarray:
        samples = sides[side]
        pieces = np.pad(samples, (0, FRAME - samples.size % FRAME)).reshape(-1, FRAME)
        state, context, likely = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
        for piece in pieces:
            given = np.concatenate([context, piece])[None]
            value, state = session.run(None, {"input": given, "state": state, "sr": np.array(RATE)})
            likely.append(value[0, 0])
            context = piece[-64:]
        frames = np.arange(-(-samples.size // HOP) + 1) * HOP
        return np.interp(frames, (np.arange(len(likely)) + 0.5) * FRAME, likely) > threshold

    return detect


def detectors() -> dict[str, Detector | None]:
    found: dict[str, Detector | None] = {"no gate": None, "the model's own": None}
    for side, heard in enumerate(("noisy", "enhanced")):
        if importlib.util.find_spec("webrtcvad"):
            found |= {f"webrtcvad {mode}, {heard}": webrtc(mode, side) for mode in (0, 1, 2, 3)}
        if importlib.util.find_spec("silero_vad"):
            found |= {f"Silero {threshold}, {heard}": silero(threshold, side) for threshold in (0.02, 0.1, 0.5)}
    return found


class Tally:
    """Sums over the frames of all recordings, of one way to gate."""

    def __init__(self) -> None:
        self.left: dict[str, list[float]] = {"pauses": [], "long pauses": []}
        self.speech: list[float] = []  # dB of the gate
        self.gone: list[bool] = []  # of the speech that it turned down
        self.onsets: list[float] = []

    def add(self, clean: np.ndarray, enhanced: np.ndarray, made: np.ndarray) -> None:
        """Powers of the frames."""
        active = clean[clean > 1e-3 * clean.max()].mean()
        pause, speech = clean < 1e-4 * active, clean > 10**-2.5 * active
        self.left["pauses"] += decibels(made[pause] / active).tolist()
        self.left["long pauses"] += decibels(made[_long(pause)] / active).tolist()
        change = decibels(made + 1e-12) - decibels(enhanced + 1e-12)
        self.speech += change[speech].tolist()
        lost = speech & (change < -1)
        self.gone += (enhanced[lost] < 10**-1.5 * clean[lost]).tolist()
        starts = [k for k in range(BEFORE, len(speech) - SOON) if speech[k] and not speech[k - BEFORE : k].any()]
        self.onsets += [float(decibels(made[k : k + SOON].sum() / enhanced[k : k + SOON].sum())) for k in starts]

    def row(self) -> str:
        left = [f"{np.mean(values):.1f}" for values in self.left.values()]
        lost = f"{100 * np.mean(np.array(self.speech) < -1):.2f} %"
        gone = f"{100 * np.mean(self.gone):.0f} %" if self.gone else ""
        return " | ".join([*left, lost, gone, f"{int(np.sum(np.array(self.onsets) < -1))} of {len(self.onsets)}"])


def decibels(ratio: np.ndarray) -> np.ndarray:
    return 10 * np.log10(ratio + 1e-12)


def _long(pause: np.ndarray) -> np.ndarray:
    """Those frames that lie in a pause of half a second or more."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], pause.astype(int), [0]]))).reshape(-1, 2)
    kept = np.zeros_like(pause)
    for begin, end in ends:
        kept[begin:end] = end - begin >= LONG
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="dpt_complex")
    options = parser.parse_args()
    enhancer, ways = Enhancer.from_pretrained(options.model, "cpu"), detectors()
    tallies = {"noisy": Tally(), **{name: Tally() for name in ways}}
    for folders in zip(options.folders[::2], options.folders[1::2], strict=True):
        for pair in match_pairs(*folders):
            noisy, clean = read_mono(pair.noisy, RATE), read_mono(pair.clean, RATE)
            enhanced = enhancer(noisy, RATE)
            powers = power(clean), power(enhanced)
            tallies["noisy"].add(*powers, power(noisy))
            for name, detect in ways.items():
                gate = Given(detect(noisy, enhanced)) if detect else SpeechGate(1)
                made = enhanced if name == "no gate" else gated(gate, noisy, enhanced)
                tallies[name].add(*powers, power(made))
    print("| | pauses, dB | long pauses, dB | speech turned down | gone before | onsets turned down |")
    print("|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(f"| {name} | {tally.row()} |")


if __name__ == "__main__":
    main()
