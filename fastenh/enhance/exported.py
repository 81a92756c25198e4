"""Models that ``fastenh export`` wrote, run by onnxruntime."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from fastenh.models.checkpoint import CheckpointError
from fastenh.models.export import INPUT, KEY, SUFFIX, need


class ExportedModel(nn.Module):
    """Waveforms (B, L) at 16 kHz -> (B, L), on one thread of the CPU a call; several may call it at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        need("onnxruntime")
        import onnxruntime

        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors alone
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds, which share no base
            raise CheckpointError(f"{path}: not a readable ONNX model ({str(error).splitlines()[0]})") from error
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY, "null"))
        if not self.about:
            raise CheckpointError(f"{path}: an ONNX model, but not one that fastenh export wrote")
        if "rings" in self.about:
            raise CheckpointError(f"{path}: a step of live sound (fastenh export --live), which takes no files")
        self.identity = hashlib.sha256(content).hexdigest()

    def forward(self, waveform: Tensor) -> Tensor:
        try:
            return torch.from_numpy(self.session.run(None, {INPUT: waveform.numpy()})[0])
        except Exception as error:  # as above
            raise RuntimeError(f"onnxruntime: {str(error).splitlines()[0]}") from error


def is_exported(source: str | Path) -> bool:
    return Path(source).suffix == SUFFIX
