"""What ``frontend.py`` does around a core, in the operators of ONNX (opset 18). It needs onnxscript."""

from __future__ import annotations

import numpy as np
import torch
from onnx import GraphProto, numpy_helper
from onnxscript import FLOAT, script
from onnxscript import opset18 as op

from fastenh.models.frontend import BINS, N_FFT
from fastenh.models.level import SILENCE_RMS

Waveform, Level = FLOAT["batch", "samples"], FLOAT["batch", 1]
Spectrum = FLOAT["batch", BINS, "frames", 2]


def around(hop: int) -> tuple[GraphProto, GraphProto]:
    """What comes before the core, and what comes behind it; equal names are the same values.

    The core takes ``spectrum`` and gives ``masked``, both real pairs (batch, 257, frames, 2).
    """
    hann = numpy_helper.from_array(torch.hann_window(N_FFT, periodic=True).numpy(), "hann")
    conjugate = numpy_helper.from_array(np.array([1.0, -1.0], np.float32), "conjugate")
    size, side, top, floor = N_FFT, N_FFT // 2, N_FFT // 2 - 1, SILENCE_RMS

    @script()
    def before(waveform: Waveform):
        hops, margin = op.Constant(value_ints=[hop]), op.Constant(value_ints=[side])
        level = op.Max(op.Sqrt(op.ReduceMean(waveform * waveform, [-1], keepdims=1)), op.Constant(value_float=floor))
        missing = op.Mod(op.Neg(op.Shape(waveform, start=1, end=2)), hops)  # samples to whole hops
        pads = op.Concat(op.Constant(value_ints=[0, side, 0]), missing + margin, axis=0)
        signal = op.Unsqueeze(op.Pad(waveform / level, pads), [2])
        frames = op.STFT(signal, op.Constant(value_int=hop), op.Constant(value=hann), onesided=1)
        spectrum = op.Transpose(frames, perm=[0, 2, 1, 3])  # from (batch, frames, 257, 2)
        return spectrum, level

    @script()
    def behind(masked: Spectrum, level: Level, waveform: Waveform):
        one, hops, margin = op.Constant(value_ints=[1]), op.Constant(value_ints=[hop]), op.Constant(value_ints=[side])
        lower = op.Transpose(masked, perm=[0, 2, 1, 3])
        reverse = op.Constant(value_ints=list(range(top, 0, -1)))
        upper = op.Gather(lower, reverse, axis=2) * op.Constant(value=conjugate)
        time = op.DFT(op.Concat(lower, upper, axis=2), axis=2, inverse=1)
        window = op.Constant(value=hann)
        frames = op.Gather(time, op.Constant(value_int=0), axis=3) * window  # the real part
        count = op.Shape(frames, start=1, end=2)
        weights = op.Expand(op.Unsqueeze(window * window, [0, 1]), op.Concat(one, count, one, axis=0))
        length = op.Concat(one, (count - one) * hops + op.Constant(value_ints=[size]), axis=0)
        block = op.Constant(value_ints=[1, size])
        added = op.Col2Im(op.Transpose(frames, perm=[0, 2, 1]), length, block, strides=[1, hop])
        weight = op.Col2Im(op.Transpose(weights, perm=[0, 2, 1]), length, block, strides=[1, hop])
        whole = op.Squeeze(added / weight, [1, 2])
        kept = op.Slice(whole, margin, op.Shape(waveform, start=1, end=2) + margin, one)
        enhanced = kept * level
        return enhanced  # noqa: RET504 (the name of the output)

    return before.to_model_proto().graph, behind.to_model_proto().graph
