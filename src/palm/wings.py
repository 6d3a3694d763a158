"""What a wing offers, for type checkers: each wing's package is a `Wing` of its own model class.

Facts are shared, operations are not: these protocols describe, and nothing inherits from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from palm.config import DType, PaLMConfig
from palm.recipes import Outcome, Rates, Recipe, Remat
from palm.spec.arrays import Arrays
from palm.spec.boxes import Piece, Rows, Sliceable
from palm.spec.mesh import Mesh
from palm.spec.parameters import Parameter
from palm.spec.sampling import Sampling
from palm.tracing.program import Program

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class TrainerProtocol(Protocol[M_co]):
    """A model that learns in steps, with the state of its optimiser."""

    @property
    def model(self) -> M_co:
        """The model as it is now."""

    @property
    def placement(self) -> tuple[Any, str]:
        """The framework's device or mesh, and the attention path of the model."""

    def step(self, windows: Rows, rates: Rates) -> Outcome:
        """Learn from windows (b, n + 1), of which each process of a mesh reads its own rows.

        Where loss or gradient is not finite, nothing changes.
        """

    @property
    def intact(self) -> bool:
        """Whether a step that raised an error has changed nothing."""

    def evaluate(self, windows: np.ndarray) -> float:
        """Mean cross-entropy of windows (b, n + 1), in nats."""

    def moments(self) -> Arrays:
        """The optimiser's state under canonical names: `first.NAME` and `second.NAME`."""

    def pieces(self) -> Iterator[Piece]:
        """The pieces of weights and moments that this process owns: all processes own each part once."""

    def set_moments(self, arrays: Mapping[str, Sliceable]) -> None:
        """Inverse of `moments`."""


class DecoderProtocol(Protocol):
    """Several sequences that grow by a token at a time, with a KV cache.

    `next` may return before the device is done; `fetch` blocks.
    """

    @property
    def logits(self) -> Any:
        """Of each sequence's next token, on the device. Shape (b, v)."""

    def next(self, noise: np.ndarray | None, sampling: Sampling) -> tuple[Any, Any]:
        """Choose the next token of each sequence: ids (b,) and log-probabilities (b,), on the device."""

    def fetch(self, values: Any) -> np.ndarray:
        """What `next` gave, as an array."""

    def feed(self, tokens: np.ndarray) -> None:
        """Take in given tokens (b,) instead of chosen ones."""


class ProgramsProtocol(Protocol):
    """Exported programs, read back: `forward` and `decode` on NumPy's arrays."""

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """The logits (b, n, v) of ids (b, n)."""

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, caches: tuple[Any, ...]
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """The logits (b, v) after one new token of each sequence, and the caches with it."""


class Wing(Protocol[M]):
    """The functions that palm calls on a wing, whose models are of class M."""

    @property
    def PaLM(self) -> type[M]:  # noqa: N802 - the class itself
        """The wing's model class."""

    @property
    def Trainer(self) -> Callable[[M, Recipe], TrainerProtocol[M]]:  # noqa: N802
        """Trains a model by a recipe."""

    @property
    def Decoder(self) -> Callable[..., DecoderProtocol]:  # noqa: N802
        """Decodes sequences with a KV cache."""

    @property
    def Programs(self) -> Callable[[Mapping[str, bytes], Mapping[str, np.ndarray]], ProgramsProtocol]:  # noqa: N802
        """Reads programs back that `make_programs` made, with the weights that they take."""

    def make_programs(self, model: M, length: int) -> dict[str, bytes]:
        """The forward pass and a decoding step as programs that need no model, by name."""

    @property
    def weights(self) -> Any:
        """The module that turns the framework's arrays into NumPy's and back."""

    def from_arrays(
        self,
        config: PaLMConfig,
        fetch: Callable[[Parameter], Sliceable],
        *,
        dtype: DType,
        device: Any,
        attention: str,
    ) -> M:
        """The model whose weights `fetch` gives, one after the other."""

    def find_model(self, given: object) -> M | None:
        """The model of this wing that `given` is or wraps."""

    def settled(self, model: M) -> M:
        """The model with each weight as a parameter of its own."""

    def check_plain(self, model: M) -> None:
        """Raise unless config and weights alone decide what the model computes."""

    def to_arrays(self, model: M, *, copied: bool = ...) -> Arrays:
        """A model's weights by canonical name; views, where there can be, if not `copied`."""

    def pieces(self, model: M) -> Iterator[Piece]:
        """The pieces of a model's weights that this process owns: all processes own each part once."""

    def dtype_of(self, model: M) -> DType:
        """The dtype of a model's weights."""

    def device_name(self, model: M) -> str:
        """The device a model is on."""

    def square_product(self, model: M, size: int) -> Callable[[], None]:
        """Multiplies a float32 matrix by itself where the model is, with the threads that train it."""

    def attention_of(self, model: M) -> str:
        """The attention path of a model."""

    def activations(
        self, model: M, tokens: np.ndarray, *, segments: np.ndarray | None = ..., compiled: bool = ...
    ) -> Arrays:
        """Every tap of one forward pass."""

    def logprobs(self, model: M, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log-probability of each next token in nats, and whether none is likelier."""

    def value_and_grad(
        self,
        model: M,
        tokens: np.ndarray,
        *,
        segments: np.ndarray | None = ...,
        labels: np.ndarray | None = ...,
        compiled: bool = ...,
        remat: Remat = ...,
        copied: bool = ...,
    ) -> tuple[float, Arrays]:
        """Mean next-token loss in nats and its gradient by canonical name."""

    def trace_program(self, program: Callable[..., Any], inputs: tuple[Any, ...], label: str) -> Program:
        """Any program of the framework's with NumPy inputs, traced in float64."""

    def ahead(
        self, model: M, tokens: np.ndarray, *, compiled: bool = ..., remat: Remat = ...
    ) -> AbstractContextManager[None]:
        """Meanwhile, compile in a second thread what the float64 self will run."""

    def widened(self, model: M) -> AbstractContextManager[M]:
        """The same model computing in float64."""

    def set_matmul(self, precision: str) -> None:
        """How precisely this process multiplies float32 matrices."""

    def keep_programs(self, folder: Path) -> None:
        """Keep what is compiled in `folder`."""

    def installation(self) -> dict[str, Any]:
        """What the framework says of itself and of its devices, as JSON values."""

    def profiled(self, folder: Path) -> AbstractContextManager[None]:
        """Meanwhile, trace what this process computes, into `folder`."""

    def device_mesh(self, mesh: Mesh) -> Any:
        """The framework's mesh of devices, which `from_arrays` takes in place of a device."""

    def mesh_of_model(self, model: M) -> Mesh:
        """The mesh that a model's weights lie on; `Mesh()` for one device."""

    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""

    def join(self) -> None:
        """Join the processes that a launcher started."""

    def together(self) -> AbstractContextManager[None]:
        """What all processes do together: where one of them is gone the others raise `BackendError`."""

    def leave(self) -> None:
        """After an error: let this process end without waiting for the others."""

    def several(self) -> bool:
        """Whether there are several processes."""

    def numbered(self) -> tuple[int, int]:
        """The number of this process, from 0, and how many there are."""

    def share(self, content: bytes) -> bytes:
        """What the first process gives, to all."""

    def agreed(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes of a mesh."""

    def greatest(self, array: np.ndarray) -> np.ndarray:
        """Element by element, the largest that a process gives, of arrays of one shape and dtype."""

    def wait(self) -> None:
        """Return once all processes of a mesh have come here."""
