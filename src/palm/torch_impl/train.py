"""One training step of the torch wing. Mirror: palm.jax_impl.train.

Letters: b batch, n sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from palm.errors import BackendError
from palm.recipes import Outcome, Rates, Recipe
from palm.spec.parameters import parameters
from palm.torch_impl.loss import output_loss
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import Norm
from palm.torch_impl.optimizer import OPTIMIZERS
from palm.torch_impl.private import private_copy
from palm.torch_impl.weights import canonical, is_linear, to_tensor
from palm.tracing.turns import shared

Arrays = dict[str, np.ndarray]


def flushing_thread() -> ThreadPoolExecutor:
    """A thread that takes numbers below 1e-38 for 0, as XLA does on a CPU.

    ALiBi's steep slopes make softmax full of them, and each costs a hundred times an ordinary number. Worker
    threads of PyTorch keep to the setting of the thread that started them. So nothing that the process
    computed before changes the bits of a run, and a run does not change the bits of what comes after.
    """
    return ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,))


class Trainer:
    """A model that learns, and its optimiser's moments.

    The model's own weights are the master copy, float32 or wider; the computation runs in
    `recipe.precision` on copies of the matrices (norm scales stay as they are). On a GPU it is compiled.
    It computes in a `flushing_thread` of its own, with gradients on.
    Raises `BackendError` for a model on the meta device.
    """

    @torch.inference_mode(False)  # the moments change in place, in another thread
    def __init__(self, model: PaLM, recipe: Recipe) -> None:
        if model.embedding.weight.is_meta:
            raise BackendError(
                "a model must have values to be trained; got one on the meta device. "
                'Pass device="cpu", or leave `with torch.device("meta")`.'
            )
        self._model, self.recipe, self._thread = model, recipe, flushing_thread()
        self._copy = private_copy(model)  # other threads see the model with its own weights at all times
        self._params = {
            f"{name}.weight": model.get_parameter(f"{name}.weight") for name in parameters(model.config)
        }
        self._moments = {
            moment: {name: torch.zeros_like(p, requires_grad=False) for name, p in self._params.items()}
            for moment in ("first", "second")
        }
        self._compute = getattr(torch, recipe.precision)
        self._device = model.embedding.weight.device
        self._begun = False  # the last step has come to its update
        on_gpu = self._device.type == "cuda"
        self._objective = torch.compile(self._losses) if on_gpu else self._losses

    @property
    def model(self) -> PaLM:
        """The model as it is now; each step changes it in place."""
        return self._model

    @property
    def placement(self) -> tuple[torch.device, str]:
        """The device the model is on, and its attention path."""
        return self._device, self.model.path

    @property
    def intact(self) -> bool:
        """Whether a step that raised an error has changed nothing."""
        return not self._begun

    @shared()
    def step(self, windows: np.ndarray, rates: Rates) -> Outcome:
        """Learn from windows (b, n + 1). Where loss or gradient is not finite, nothing changes."""
        self._begun = False
        return self._thread.submit(self._step, windows, rates).result()

    @shared()
    def evaluate(self, windows: np.ndarray) -> float:
        """Mean cross-entropy of windows (b, n + 1), in nats."""
        return self._thread.submit(self._evaluate, windows).result()

    def moments(self) -> Arrays:
        """The optimiser's state under canonical names: `first.NAME` and `second.NAME`."""
        return {
            f"{moment}.{name}": array
            for moment, tensors in self._moments.items()
            for name, array in canonical(self.model, tensors).items()
        }

    def set_moments(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Inverse of `moments`, of an optimiser that has run."""
        for moment, tensors in self._moments.items():
            for name in parameters(self.model.config):
                tensor = to_tensor(arrays[f"{moment}.{name}"])
                tensors[f"{name}.weight"].copy_(tensor.T if is_linear(self.model, name) else tensor)

    def _step(self, windows: np.ndarray, rates: Rates) -> Outcome:
        micros = self._tokens(windows).chunk(self.recipe.accumulate)
        params = list(self._params.values())
        grads = [torch.zeros_like(p) for p in params] if len(micros) > 1 else []
        losses = []
        for micro in micros:
            objective, loss = self._objective(micro)
            found = torch.autograd.grad(objective, params)
            grads = (
                [total + grad / len(micros) for total, grad in zip(grads, found, strict=True)]
                if grads
                else list(found)
            )
            losses.append(loss.detach() / len(micros))
        norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        norm = torch.linalg.vector_norm(norms)
        outcome = Outcome(float(sum(losses)), float(norm), self._not_finite(norms))
        if outcome.is_finite:
            factor = (
                min(1.0, self.recipe.clip / outcome.grad_norm)
                if self.recipe.clip and outcome.grad_norm
                else 1.0
            )
            self._begun = True
            self._update(grads, factor, rates)
        return outcome

    def _evaluate(self, windows: np.ndarray) -> float:
        with torch.no_grad():
            return float(self._losses(self._tokens(windows))[1])

    def _losses(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and the cross-entropy in it."""
        config, weights = self.model.config, self._computing()
        options = {"remat": self.recipe.remat, "features": True}
        features = functional_call(self._copy, weights, (windows[:, :-1],), options)
        weight = weights["embedding.weight" if config.tie_embeddings else "unembedding.weight"]
        targets, scale = windows[:, 1:], config.logit_scale
        return output_loss(features, weight, targets, scale=scale, z_loss=self.recipe.z_loss)

    def _computing(self) -> dict[str, Tensor]:
        return {
            name: p
            if isinstance(self.model.get_submodule(name.removesuffix(".weight")), Norm)
            else p.to(self._compute)
            for name, p in self._params.items()
        }

    def _update(self, grads: list[Tensor], factor: float, rates: Rates) -> None:
        optimizer = OPTIMIZERS[self.recipe.optimizer]
        first, second = self._moments["first"], self._moments["second"]
        with torch.no_grad():
            for (name, p), g in zip(self._params.items(), grads, strict=True):
                update, first[name], second[name] = optimizer(
                    p, g * factor, first[name], second[name], rates, self.recipe.eps
                )
                p.sub_(update)

    def _not_finite(self, norms: Tensor) -> list[str]:
        flags = norms.isfinite().tolist()
        return [name for name, finite in zip(parameters(self.model.config), flags, strict=True) if not finite]

    def _tokens(self, windows: np.ndarray) -> Tensor:
        return torch.from_numpy(windows).to(self._device)
