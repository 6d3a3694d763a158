"""One training step of the torch wing. Mirror: palm.jax_impl.train.

Letters: b batch, n sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from palm.errors import BackendError
from palm.recipes import Outcome, Rates, Recipe
from palm.spec.boxes import Piece, Rows, Sliceable
from palm.spec.parameters import Parameter, frozen, parameters
from palm.torch_impl.loss import output_loss, packed, per_counted
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import Norm
from palm.torch_impl.optimizer import OPTIMIZERS
from palm.torch_impl.pieces import is_placed
from palm.torch_impl.private import private_copy
from palm.torch_impl.sharded import Sharded
from palm.torch_impl.weights import canonical, is_linear, owned, pieces, to_tensor
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
    It computes in a `flushing_thread` of its own, with gradients on. Of a model on a mesh each process has
    its pieces of weights and moments; all of them must make each call, with the same arguments.
    Raises `BackendError` for a model on the meta device.
    """

    @torch.inference_mode(False)  # the moments change in place, in another thread
    def __init__(self, model: PaLM, recipe: Recipe) -> None:
        weight = model.embedding.weight
        if weight.is_meta:
            raise BackendError(
                "a model must have values to be trained; got one on the meta device. "
                'Pass device="cpu", or leave `with torch.device("meta")`.'
            )
        self._model, self.recipe, self._thread = model, recipe, flushing_thread()
        self._program = Sharded(model, weight, recipe) if is_placed(weight) else _Whole(model, recipe)
        self._moments = {
            moment: {
                name: torch.zeros_like(p, requires_grad=False) for name, p in self._program.params.items()
            }
            for moment in ("first", "second")
        }
        self._begun = False  # the last step has come to its update
        self._thread.submit(self._program.enter_thread).result()

    @property
    def model(self) -> PaLM:
        """The model as it is now; each step changes it in place."""
        return self._model

    @property
    def placement(self) -> tuple[Any, str]:
        """The device the model is on, or its mesh of processes, and its attention path."""
        return self._program.place, self.model.path

    @property
    def intact(self) -> bool:
        """Whether a step that raised an error has changed nothing."""
        return not self._begun

    @shared()
    def step(self, windows: Rows, rates: Rates) -> Outcome:
        """Learn from windows (b, n + 1). Where loss or gradient is not finite, nothing changes.

        On a mesh each process reads its own rows of them. It raises `ConfigError` for sequences that cannot
        be shared out, `TokenError`, and `BackendError` where another process has failed.
        """
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
            for name, array in canonical(self.model, self._program.placed(tensors)).items()
        }

    def pieces(self) -> Iterator[Piece]:
        """The pieces of weights and moments that this process owns, seen where they are."""
        yield from pieces(self.model)
        for moment, tensors in self._moments.items():
            for piece in owned(self.model, self._program.placed(tensors)):
                yield piece._replace(name=f"{moment}.{piece.name}")

    def set_moments(self, arrays: Mapping[str, Sliceable]) -> None:
        """Inverse of `moments`, of an optimiser that has run. Takes of each what this process has."""
        for moment, tensors in self._moments.items():
            for name, parameter in parameters(self.model.config).items():
                tensor = to_tensor(arrays[f"{moment}.{name}"][self._program.own_part(parameter)])
                tensors[f"{name}.weight"].copy_(tensor.T if is_linear(self.model, name) else tensor)

    def _step(self, windows: Rows, rates: Rates) -> Outcome:
        program, count = self._program, self.recipe.accumulate
        ids = program.tokens(windows, count)
        micros, per_counted = ids.chunk(count), program.per_counted(ids)
        grads = [torch.zeros_like(p) for p in program.learnt.values()] if len(micros) > 1 else []
        losses = []
        for micro in micros:
            loss, found = program.gradients(micro, per_counted)
            grads = (
                [total + grad / len(micros) for total, grad in zip(grads, found, strict=True)]
                if grads
                else found
            )
            losses.append(loss / len(micros))
        mean, norms = program.totals(sum(losses[1:], losses[0]), grads)
        norm = torch.linalg.vector_norm(norms)
        outcome = Outcome(mean, float(norm), self._not_finite(norms))
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
        return self._program.loss(windows)

    def _update(self, grads: list[Tensor], factor: float, rates: Rates) -> None:
        optimizer = OPTIMIZERS[self.recipe.optimizer]
        first, second = self._moments["first"], self._moments["second"]
        params = self._program.learnt
        with torch.no_grad():
            sizes = self._program.sizes()
            for (name, p), g, size in zip(params.items(), grads, sizes, strict=True):
                update, first[name], second[name] = optimizer(
                    p, g * factor, first[name], second[name], rates, self.recipe.eps, size
                )
                p.sub_(update)

    def _not_finite(self, norms: Tensor) -> list[str]:
        flags = norms.isfinite().tolist()
        names = [name.removesuffix(".weight") for name in self._program.learnt]
        return [name for name, finite in zip(names, flags, strict=True) if not finite]


class _Whole:
    """The program of a model on one device; `Sharded` is that of a process of a mesh."""

    def __init__(self, model: PaLM, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        self._copy = private_copy(model)  # other threads see the model with its own weights at all times
        self.params: dict[str, Tensor] = {
            f"{name}.weight": model.get_parameter(f"{name}.weight") for name in parameters(model.config)
        }
        names = frozen(model.config, recipe.freeze)
        self.learnt = {n: p for n, p in self.params.items() if n.removesuffix(".weight") not in names}
        self._compute = getattr(torch, recipe.precision)
        self.place = model.embedding.weight.device
        self._objective = torch.compile(self._losses) if self.place.type == "cuda" else self._losses

    def enter_thread(self) -> None:
        """Prepare the thread that computes."""

    def tokens(self, windows: Rows, micros: int) -> Tensor:
        return torch.from_numpy(windows[:]).to(self.place)

    def per_counted(self, windows: Tensor) -> Tensor | None:
        if self._recipe.pack is None:
            return None
        return per_counted(packed(windows, self._recipe.pack)[1], self._model.norm.weight)

    def gradients(self, windows: Tensor, per_counted: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        objective, loss = self._objective(windows, per_counted)
        return loss.detach(), list(torch.autograd.grad(objective, list(self.learnt.values())))

    def totals(self, loss: Tensor, grads: list[Tensor]) -> tuple[float, Tensor]:
        norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        return float(loss), norms

    def sizes(self) -> list[None]:
        return [None] * len(self.learnt)

    def loss(self, windows: np.ndarray) -> float:
        with torch.no_grad():
            ids = self.tokens(windows, 1)
            return float(self._losses(ids, self.per_counted(ids))[1])

    def placed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors

    def own_part(self, parameter: Parameter) -> tuple[slice, ...]:
        return tuple(slice(0, size) for size in parameter.shape)

    def _losses(self, windows: Tensor, per_counted: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is minimised, and the cross-entropy in it."""
        config, weights = self._model.config, self._computing()
        segments, targets = packed(windows, self._recipe.pack)
        options = {"segments": segments, "remat": self._recipe.remat, "features": True}
        features = functional_call(self._copy, weights, (windows[:, :-1],), options)
        weight = weights["embedding.weight" if config.tie_embeddings else "unembedding.weight"]
        scale, z_loss = config.logit_scale, self._recipe.z_loss
        return output_loss(features, weight, targets, scale=scale, z_loss=z_loss, per_counted=per_counted)

    def _computing(self) -> dict[str, Tensor]:
        computing = {}
        for name, p in self.params.items():
            is_norm = isinstance(self._model.get_submodule(name.removesuffix(".weight")), Norm)
            weight = p if name in self.learnt else p.detach()
            computing[name] = weight if is_norm else weight.to(self._compute)
        return computing
