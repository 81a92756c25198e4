"""Enhance a recording with an exported model: NumPy, soundfile and onnxruntime are all it needs.

fastenh export dpt_complex --int8 -o model.onnx
python examples/enhance_onnx.py model.onnx noisy.wav enhanced.wav
"""

import sys

import numpy as np
import onnxruntime
import soundfile

RATE, SPAN, CONTEXT, FADE = 16_000, 57_280, 4_000, 6_400  # Hz; samples kept of a window, heard beside, faded over
WINDOW, GRAIN = SPAN + 2 * CONTEXT, 8_192  # the last window is longer by multiples of the grain, as in the toolkit


def enhance(session: onnxruntime.InferenceSession, noisy: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (samples,), in windows that fade into each other."""
    before = -(-max(0, noisy.size - WINDOW * 3 // 2) // SPAN)  # windows before the last one, which ends with the file
    last = WINDOW - min(0, (WINDOW + before * SPAN - noisy.size) // GRAIN) * GRAIN  # its length
    starts = [*range(0, before * SPAN, SPAN), noisy.size - last if before else 0]
    rising, enhanced = ((np.arange(FADE) + 0.5) / FADE).astype(np.float32), np.zeros_like(noisy)
    heard = np.pad(noisy, (0, max(0, last - noisy.size) if noisy.size > WINDOW else 0), "reflect")
    for index, start in enumerate(starts if noisy.size else []):
        window = session.run(None, {"waveform": heard[None, start:][:, : last if index == before else WINDOW]})[0][0]
        begin = index * SPAN + CONTEXT - FADE // 2 if index else 0  # where it takes over from the one before
        fresh = window[begin - start : noisy.size - start]
        if index:
            fresh[:FADE] = fresh[:FADE] * rising + enhanced[begin : begin + FADE] * (1 - rising)
        enhanced[begin : begin + fresh.size] = fresh
    return enhanced


if __name__ == "__main__":
    model, source, target = sys.argv[1:]
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    if rate != RATE:
        sys.exit(f"{source}: has {rate} Hz; resample it to {RATE} Hz first")
    session = onnxruntime.InferenceSession(model)
    soundfile.write(target, np.stack([enhance(session, channel) for channel in samples.T], axis=1), rate)
