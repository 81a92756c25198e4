"""One step of training: a batch goes in, the weights move. It knows no data, no folder and no epochs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastenh.data.feed import Batch, Share
from fastenh.devices import pick_dtype
from fastenh.models import checkpoint
from fastenh.models.batch_norm import join_batch_norms
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import build
from fastenh.train.averages import Averages
from fastenh.train.graphs import GraphedStep
from fastenh.train.losses import EnhancementLoss
from fastenh.train.optimisers import make_optimiser
from fastenh.train.ranks import average_gradients
from fastenh.train.recipe import Recipe
from fastenh.train.state import RunError
from fastenh_kernels import backend

_SEED_STRIDE = 1_000_003  # a prime: the seeds of the steps of two runs do not meet


class Step:
    """Model, loss, optimiser and averaged weights of a recipe, and what one step does to them.

    With several processes each calls its own ``Step`` with its ``share`` of the batch, and all end with the same
    weights. ``state_dict`` holds all that later steps depend on: on the CPU they go on from it bit for bit.
    Raises ``RunError`` where ``run.init`` names weights that do not fit.
    """

    def __init__(self, recipe: Recipe, device: torch.device, share: Share | None = None) -> None:
        self.recipe, self.device, self.share = recipe, device, share or Share()
        torch.manual_seed(recipe.data.seed)
        self.model = initial_model(recipe).to(device)
        if self.share.ranks > 1:
            join_batch_norms(self.model)
        self.loss = EnhancementLoss(recipe.loss, self.model.frontend.hop).to(device)
        self.optimiser = make_optimiser(self.model, recipe.optimiser)
        self.ema = Averages(self.model, recipe.run.ema) if recipe.run.ema else None
        self.autocast_dtype = pick_dtype(recipe.run.precision, device)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # batches of one shape: the quickest convolutions are worth a search
        if recipe.run.compile == "on" or (recipe.run.compile == "auto" and device.type == "cuda"):
            backend.choose(device, training=True)  # the kernels' own test, before anything is traced
            self.model.core.compile()
        self._statistics = [buffer.clone() for buffer in self.model.buffers()]  # of the batch norms, a step ago
        self.differentiate, self.update = self._differentiate, self._update
        if recipe.run.graph == "auto" and device.type == "cuda" and self.share.ranks == 1:
            graphed = GraphedStep(self._differentiate, self._update, self.model.parameters(), self.optimiser)
            self.differentiate, self.update = graphed.differentiate, graphed.update

    def __call__(self, batch: Batch, number: int, learning_rate: float) -> float:
        """Step number ``number`` of the run, on this process's share of its batch.

        Returns the loss of the whole batch. Where it or the gradient is not finite, the step is skipped: weights,
        averages and batch-norm statistics stay as they were, and NaN is returned.
        """
        # Dropout draws by step and process, not by history: a resumed run draws what it would have drawn.
        number = number * self.share.ranks + self.share.rank
        torch.manual_seed(self.recipe.data.seed * _SEED_STRIDE + number)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        torch._foreach_copy_(self._statistics, list(self.model.buffers()))  # a bad step spoils them
        loss, norm = self.differentiate(*(side.to(self.device, non_blocking=True) for side in batch)).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            torch._foreach_copy_(list(self.model.buffers()), self._statistics)
            return math.nan
        with record_function("optimiser"):
            self.update()
        return loss

    def _differentiate(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """The loss, and the norm of the gradients before they are clipped: (2,)."""
        loss = self._backward(noisy, clean)
        with record_function("optimiser"):
            loss = average_gradients(list(self.model.parameters()), loss)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        return torch.stack([loss, norm])

    def _update(self) -> None:
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _backward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Gradients of the mean loss of the batch, which goes through the model in ``run.accumulate`` parts."""
        self.optimiser.zero_grad()
        parts = self.recipe.run.accumulate
        total = torch.zeros((), device=self.device)
        mixed = self.autocast_dtype != torch.float32
        for part, target in zip(noisy.chunk(parts), clean.chunk(parts), strict=True):
            with record_function("forward"), torch.autocast(self.device.type, self.autocast_dtype, enabled=mixed):
                enhanced, spectrum = self.model.with_spectrum(part)
            with record_function("loss"):
                loss = self.loss(enhanced.float(), target, part, spectrum) / parts
            with record_function("backward"):
                loss.backward()
            total += loss.detach()
        return total

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self.optimiser.param_groups[0]["lr"]

    @property
    def judged(self) -> SpectralModel:
        """The model that is validated and kept: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.core.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state, with or without more keys. Raises ``ValueError`` for another optimiser's state."""
        self.model.core.load_state_dict(state["model"])
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"the state of another optimiser than {self.recipe.optimiser.kind}") from error
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])


def initial_model(recipe: Recipe) -> SpectralModel:
    """Make a model with fresh weights or those of ``run.init``. Raises ``RunError`` if they are another model's."""
    model = build(recipe.model, recipe.config)
    if recipe.run.init:
        start, found = checkpoint.load(recipe.run.init)
        if found.name != recipe.model:
            raise RunError(f"run.init: {recipe.run.init} is a {found.name}, the recipe trains a {recipe.model}")
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise RunError(f"run.init: {recipe.run.init} has another configuration than the recipe") from error
    return model
