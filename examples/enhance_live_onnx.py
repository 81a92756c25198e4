"""Enhance a recording hop by hop, as live sound comes: NumPy, soundfile and onnxruntime are all it needs.

fastenh export dpt_complex-live --live -o step.onnx
python examples/enhance_live_onnx.py step.onnx noisy.wav enhanced.wav
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

RATE, HOP = 16_000, 256


class Step:
    """One sound, 256 samples at a time. What comes out is 256 samples behind what goes in."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.hops = session, 0
        self.rings = json.loads(session.get_modelmeta().custom_metadata_map["fastenh"])["rings"]
        shapes = {given.name: given.shape for given in session.get_inputs() if given.name != "waveform"}
        self.state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}  # before any sound

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        enhanced, *following = self.session.run(None, {"waveform": samples[None], **self.state})
        for name, after in zip(list(self.state), following, strict=True):
            if name in self.rings:  # of which the newest frame comes: it takes the place of the oldest
                ring = self.state[name]
                ring[:, self.hops % ring.shape[1]] = after[:, 0]
            else:
                self.state[name] = after
        self.hops += 1
        return enhanced[0]


def enhance(session: onnxruntime.InferenceSession, noisy: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (samples,); one hop of silence more brings the last one out."""
    step, hops = Step(session), -(-noisy.size // HOP) + 1
    padded = np.pad(noisy, (0, hops * HOP - noisy.size)).reshape(hops, HOP)
    return np.concatenate([step(hop) for hop in padded])[HOP : HOP + noisy.size]


if __name__ == "__main__":
    model, source, target = sys.argv[1:]
    recording, rate = soundfile.read(source, dtype="float32", always_2d=True)
    if rate != RATE:
        sys.exit(f"{source}: has {rate} Hz; resample it to {RATE} Hz first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a hop is too little to share
    session = onnxruntime.InferenceSession(model, options)
    soundfile.write(target, np.stack([enhance(session, channel) for channel in recording.T], axis=1), rate)
