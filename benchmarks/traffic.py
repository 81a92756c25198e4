"""What PyTorch's own operations move in a training step of dpt, and what the step keeps for its backward pass.

usage: python -m benchmarks.traffic

Nothing is computed: tensors are fake, the kernels' operators count for themselves (``benchmarks.roofline --pipes``),
and every other operation counts as one read of its inputs and one write of its results. ``torch.compile`` fuses some of
them, so that this is an upper bound. Kept is what autograd saves between forward and backward pass, each storage once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastenh.models.dpt import DPTConfig
from fastenh.models.registry import build
from fastenh.train.losses import EnhancementLoss, LossConfig
from fastenh_kernels import backend

CLIPS, SAMPLES = 64, 48_000
PARTS = ("forward", "loss", "backward", "sums of parts", "optimiser")
_VIEWS = {"aten::_unsafe_view", "aten::detach", "aten::view_as_complex", "aten::view_as_real", "prim::device"}
_EMPTY = {"aten::empty.memory_format", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class Traffic(TorchDispatchMode):
    """Bytes by part of the step; the operators of the kernels by name, in order.

    inside: counts what the functions that launch kernels do besides, and nothing else.
    """

    def __init__(self, inside: bool = False) -> None:
        super().__init__()
        self.inside, self._depth = inside, 0
        self.moved: Counter[str] = Counter()
        self.operators: list[str] = []
        self.part = PARTS[0]

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "fastenh_kernels":
            name = function.name().removeprefix("fastenh_kernels::")
            self.operators.append(name)
            return self._launch(name, args) if self.inside else function(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if self.inside and not self._depth:
            return result
        if not function.is_view and function.name() not in _VIEWS | _EMPTY:
            read = {id(t): t for t in _tensors((args, kwargs))}
            written = _tensors(_mutated(function, args) or result)
            self.moved[self.part] += sum(map(_bytes, (*read.values(), *written)))
        return result

    def _launch(self, name: str, args: tuple) -> Any:
        from fastenh_kernels.shared.operators import LAUNCHERS  # imports Triton

        self._depth += 1
        try:
            with self:
                return LAUNCHERS[name](*args)
        finally:
            self._depth -= 1


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _mutated(function: Any, args: tuple) -> list[Any]:
    """The arguments that an operation in place writes to."""
    schema = function._schema.arguments[: len(args)]
    return [arg for arg, a in zip(args, schema, strict=True) if a.alias_info is not None and a.alias_info.is_write]


def _bytes(tensor: Tensor) -> int:
    """Of the values that are there: an expanded tensor has fewer than it shows."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def keeping(kept: dict[int, int]) -> Iterator[None]:
    """Writes bytes of each storage that autograd saves into ``kept``."""

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def step_traffic(clips: int = CLIPS) -> Traffic:
    """A training step on the kernels, in bfloat16 autocast."""
    with FakeTensorMode(), backend.use_backend("interpret"):
        backend.choose(torch.device("cpu"))  # loads the kernels for the interpreter
        from benchmarks.roofline.shipped import training_launches

        model = build("dpt", DPTConfig(dropout=0.0)).train()
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        optimiser.step()  # its state is made before
        noisy, clean = torch.empty(2, clips, SAMPLES)
        loss = EnhancementLoss(LossConfig())
        with Traffic() as traffic:
            with torch.autocast("cpu", torch.bfloat16):
                enhanced = model(noisy)
            traffic.part = "loss"
            value = loss(enhanced.float(), clean, noisy)
            traffic.part = "backward"
            value.backward()
            traffic.part = "optimiser"
            optimiser.step()
    with Traffic(inside=True) as beside:
        for beside.part in ("tables, made once", "sums of parts"):
            list(training_launches(torch.bfloat16, clips))
    traffic.moved |= beside.moved
    return traffic


def kept_bytes(model: nn.Module, dtype: torch.dtype, name: str, clips: int = 4) -> float:
    """Bytes a clip that the forward pass of ``model``, spectra to spectra, keeps on a backend; weights left out."""
    kept: dict[int, int] = {}
    autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with backend.use_backend(name), autocast, keeping(kept):
        model(torch.empty(clips, 257, 188, dtype=torch.complex64))
    return sum(size for storage, size in kept.items() if storage not in weights) / clips


def kept_by_each() -> dict[str, float]:
    """Megabytes a clip of 3 s: the textbook module in float32, ours on the kernels in bfloat16."""
    from benchmarks.textbook import TextbookDPT

    with FakeTensorMode():
        ours = build("dpt", DPTConfig(dropout=0.0)).train().core
        textbook = TextbookDPT(ours).train()
        return {
            "textbook, float32": kept_bytes(textbook, torch.float32, "reference") / 1e6,
            "reference, float32": kept_bytes(ours, torch.float32, "reference") / 1e6,
            "kernels, bfloat16": kept_bytes(ours, torch.bfloat16, "interpret") / 1e6,
        }


def main() -> None:
    traffic = step_traffic()
    print(f"PyTorch's own operations of a training step, {CLIPS} clips of 3 s, MB a clip")
    for part in PARTS:
        print(f"  {part:24} {traffic.moved[part] / CLIPS / 1e6:8.2f}")
    print("kept for the backward pass, MB a clip")
    for name, megabytes in kept_by_each().items():
        print(f"  {name:24} {megabytes:8.1f}")


if __name__ == "__main__":
    main()
