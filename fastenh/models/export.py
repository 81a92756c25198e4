"""Models as ONNX files: waveform to waveform at 16 kHz, with the level, the STFT and its inverse inside.

A causal model becomes a step instead, which takes one hop of live sound and the state behind the one before.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastenh.errors import ProcessingError
from fastenh.models.frontend import BINS, SpectralModel
from fastenh.models.live import HOP, LiveModel
from fastenh.models.live_step import LiveStep
from fastenh_kernels import backend

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

SUFFIX = ".onnx"
INPUT, OUTPUT = "waveform", "enhanced"  # both float32 (batch, samples)
KEY = "fastenh"  # of the JSON in a file's metadata that says what it holds
_LARGE = 256  # values of a constant
_FRAMES = 19  # of the example that is traced: any number from 2 on is taken afterwards


class ExportError(ProcessingError, RuntimeError):
    """A model that has no form in ONNX, or a package that is not installed."""


def export(model: SpectralModel, about: dict[str, Any]) -> ModelProto:
    """Export the model in float32, for any batch and any length from one sample on; ``about`` goes into its metadata.

    Raises ``ExportError``.
    """
    need("onnx", "onnxscript")
    if model.causal:
        raise ExportError("a causal model has a running level and is written as a step of live sound: give --live")
    from onnx import TensorProto, compose, helper

    from fastenh.models.onnx_frontend import around

    core = _core(model.folded().core)
    before, behind = around(model.frontend.hop)
    named = ("before", before), ("core", core.graph), ("behind", behind)
    parts = [
        compose.add_prefix_graph(graph, f"{name}/", rename_inputs=False, rename_outputs=False) for name, graph in named
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "samples"])] for name in (INPUT, OUTPUT)
    )
    graph = helper.make_graph(
        [node for part in parts for node in part.node],
        "fastenh",
        inputs,
        outputs,
        [tensor for part in parts for tensor in part.initializer],
    )
    return _finished(graph, core, about)


def export_live(model: SpectralModel, about: dict[str, Any]) -> ModelProto:
    """Export one hop of a causal model in float32: ``LiveStep``, for one sound.

    Inputs are ``waveform`` (1, 256) and the state, outputs ``enhanced`` (1, 256) and ``next_NAME`` for each NAME of the
    state. Besides ``about``, the metadata has the names of its ``rings``. Raises ``ExportError``, and
    ``LiveModelError`` for a model that looks ahead.
    """
    need("onnx", "onnxscript")
    step = LiveStep(LiveModel(model)).eval()
    given = torch.randn(1, HOP), *(torch.zeros(shape) for shape in step.state.values())
    names = [INPUT, *step.state], [OUTPUT, *(f"next_{name}" for name in step.state)]
    program = _traced(step, given, *names)
    return _finished(program.graph, program, {**about, "rings": list(step.rings)})


def _finished(graph: GraphProto, traced: ModelProto, about: dict[str, Any]) -> ModelProto:
    from onnx import checker, helper

    for node in graph.node:
        del node.metadata_props[:]  # where in PyTorch it came from: a third of the file
    made = helper.make_model(
        graph, opset_imports=traced.opset_import, ir_version=traced.ir_version, producer_name="fastenh"
    )
    helper.set_model_props(made, {KEY: json.dumps(about)})
    checker.check_model(made)
    return made


def quantised(model: ModelProto) -> ModelProto:
    """Return the same with 8-bit matrix products; other large tensors are stored in float16.

    The scale of what is multiplied is found anew in each product, of the weights one for each column. Both factors
    are unsigned: with signed weights, sums saturate on x86 processors without VNNI. Raises ``ExportError``.
    """
    need("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, _silent():
        path = Path(folder, "int8.onnx")
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QUInt8)
        made = onnx.load(path)
    _halve(made.graph)
    about = {**json.loads(model.metadata_props[0].value), "precision": "int8"}
    onnx.helper.set_model_props(made, {KEY: json.dumps(about)})
    return made


def _halve(graph: GraphProto) -> None:
    """Large float32 constants become float16 with a cast behind them, which a session does once."""
    from onnx import TensorProto, helper, numpy_helper

    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _LARGE:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/float16"))
            graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))


def need(*packages: str) -> None:
    """Raise ``ExportError``, naming the extra that has them, unless all ``packages`` are installed."""
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise ExportError(f"{' and '.join(lacking)} cannot be imported: pip install 'fastenh[onnx]'")


class _OnPairs(nn.Module):
    """A core from real pairs (B, 257, T, 2) to real pairs: ONNX has no complex numbers."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, spectrum: Tensor) -> Tensor:
        return torch.view_as_real(self.core(torch.view_as_complex(spectrum)))


def _core(core: nn.Module) -> ModelProto:
    spectrum = torch.randn(2, BINS, _FRAMES, 2)
    sizes = {"spectrum": {0: torch.export.Dim("batch"), 2: torch.export.Dim("frames", min=2)}}
    return _traced(_OnPairs(core).eval(), (spectrum,), ["spectrum"], ["masked"], sizes)


def _traced(
    module: nn.Module, given: tuple[Tensor, ...], inputs: list[str], outputs: list[str], sizes: Any = None
) -> ModelProto:
    """``sizes``: dimensions that may differ from those ``given``."""
    from onnxscript import optimizer

    try:
        with backend.use_backend("reference"), torch.no_grad(), _silent():
            program = torch.onnx.export(
                module, given, dynamo=True, optimize=False, opset_version=18, verbose=False,
                dynamic_shapes=sizes, input_names=inputs, output_names=outputs,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"this model cannot be written as ONNX: {reason}") from error
    assert program is not None  # nor ever is it, with dynamo
    # Of what the exporter would do by itself, this alone: it also takes an addition of 1e-10 for one of nothing.
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    return program.model_proto


@contextmanager
def _silent() -> Iterator[None]:
    """Without words about packages that no model here needs, and advice to programmers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
