"""What PyTorch's own operations move in what ships of dpt, and what a step keeps for its backward pass.

usage: python -m benchmarks.traffic

Nothing is computed: tensors are fake, the kernels' operators count for themselves (``benchmarks.roofline --pipes``),
and every other operation counts as one read of its inputs and one write of its results; a batch norm reads twice, once
for its statistics. ``torch.compile`` fuses some of them, so that this is an upper bound of what is moved; what a launch
costs by itself is not in it. Kept is what autograd saves between forward and backward pass, each storage once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.roofline.shipped import Work, training_launches
from fastenh.models.dpt import DPTConfig
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel
from fastenh.models.registry import build
from fastenh.train.losses import EnhancementLoss
from fastenh.train.optimisers import make_optimiser
from fastenh.train.recipe import Recipe, load_recipe
from fastenh_kernels import backend
from fastenh_kernels.shared.launch import Launch

_TWICE = ("native_batch_norm", "cudnn_batch_norm", "batch_norm_backward")  # read their inputs twice
_VIEWS = {
    "aten::_unsafe_view", "aten::detach", "aten::transpose_", "aten::view_as_complex", "aten::view_as_real",
    "prim::device",
}  # fmt: skip
_EMPTY = {"aten::empty.memory_format", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class Traffic(TorchDispatchMode):
    """Bytes by part of the step; the operators of the kernels by name, in order.

    inside: counts what the functions that launch kernels do besides, and nothing else.
    """

    def __init__(self, inside: bool = False) -> None:
        super().__init__()
        self.inside, self._depth = inside, 0
        self.moved: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()  # operations that move something: launches, before any are fused
        self.operators: list[str] = []
        self.kept: dict[int, int] = {}  # bytes of each storage that autograd saves
        self.part = "forward"

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
            times = 2 if any(name in function.name() for name in _TWICE) else 1
            self.moved[self.part] += times * sum(map(_bytes, read.values())) + sum(map(_bytes, written))
            self.calls[self.part] += 1
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


def step_traffic(recipe: Recipe) -> Traffic:
    """A training step of a recipe on the kernels, in bfloat16 autocast, as ``fastenh.train.step`` makes it."""
    with FakeTensorMode(), backend.use_backend("record"):
        model = build(recipe.model, recipe.config).train()
        loss = EnhancementLoss(recipe.loss, model.frontend.hop)
        optimiser = make_optimiser(model, recipe.optimiser)
        noisy, clean = torch.empty(2, recipe.data.batch_size, round(recipe.data.seconds * SAMPLE_RATE))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()  # its state is made before
        optimiser.zero_grad()
        with Traffic() as traffic:
            with keeping(traffic.kept):
                with torch.autocast("cpu", torch.bfloat16):
                    enhanced, spectrum = model.with_spectrum(noisy)
                traffic.part = "loss"
                value = loss(enhanced.float(), clean, noisy, spectrum)
            for parameter in model.parameters():
                traffic.kept.pop(parameter.untyped_storage()._cdata, None)
            traffic.part = "backward"
            value.backward()
            traffic.part = "clipping"
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip)
            traffic.part = "optimiser"
            optimiser.step()
            traffic.part = "averages"
            if recipe.run.ema:  # parameters and the statistics of batch norms; counters, a number each, are left out
                values = [v for v in (*model.parameters(), *model.buffers()) if v.is_floating_point()]
                torch._foreach_lerp_([torch.empty_like(value) for value in values], values, 0.5)
    with Traffic(inside=True) as beside:
        for beside.part in ("tables, made once", "sums of parts"):
            list(step_launches(recipe))
    for found, more in ((traffic.moved, beside.moved), (traffic.calls, beside.calls)):
        found["sums of parts"] = more["sums of parts"]
    return traffic


def step_launches(recipe: Recipe) -> Iterator[tuple[str, Launch]]:
    """The launches of a training step of a recipe, in bfloat16, in order."""
    spectral = bool(recipe.loss.compressed_magnitude or recipe.loss.compressed_complex)
    return training_launches(torch.bfloat16, work_of(recipe), model=recipe.model, spectral=spectral)


def work_of(recipe: Recipe) -> Work:
    """The batch of a recipe."""
    samples = round(recipe.data.seconds * SAMPLE_RATE)
    frames = 1 + math.ceil(samples / recipe.config.hop)
    return Work(recipe.data.batch_size, frames, recipe.data.seconds, recipe.config.dropout)


def window_traffic(work: Work, name: str) -> Traffic:
    """Enhancing a batch of windows on the kernels, as ``fastenh.enhance.enhancer`` does: level, STFT, inverse."""
    with FakeTensorMode(), backend.use_backend("record"):
        model = build(name).eval()
        hop = model.frontend.hop
        model = SpectralModel(model.core.folded(torch.bfloat16), hop).eval()
        waveforms = torch.empty(work.clips, (work.frames - 1) * hop)
        with Traffic() as traffic, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            model(waveforms)
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
            "kernels, bfloat16": kept_bytes(ours, torch.bfloat16, "record") / 1e6,
        }


def main() -> None:
    for name in ("dpt-mix", "dpt", "dpt_complex"):
        recipe = load_recipe(name)
        traffic = step_traffic(recipe)
        print(f"PyTorch's own operations in a training step of {name}, {recipe.data.batch_size} clips")
        for part, moved in traffic.moved.items():
            print(f"  {part:24} {moved / 1e6:8.2f} MB {traffic.calls[part]:5} operations")
        print(f"  kept between the passes: {sum(traffic.kept.values()) / recipe.data.batch_size / 1e6:.1f} MB a clip")
    print("kept for the backward pass of the core of dpt, MB a clip of 3 s")
    for name, megabytes in kept_by_each().items():
        print(f"  {name:24} {megabytes:8.1f}")


if __name__ == "__main__":
    main()
