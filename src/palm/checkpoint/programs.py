"""Exported programs: a model's forward pass and decoding step, which run without palm's models.

    OUT/forward.pt2, decode.pt2                      "torch-export": what torch.export.load reads
    OUT/forward.jax, decode.jax, weights.safetensors "stablehlo": what jax.export.deserialize reads
    OUT/program.json    config, dtype, length, inputs and outputs, the framework's version, how near the
                        programs are to the model; of each file its size and SHA-256; the SHA-256 of itself

Letters: l layers, b batch, n sequence, s cached positions, e dim_head, v num_tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.backends import wing
from palm.checkpoint.manifest import damaged, read_tensors, verifying
from palm.config import Backend, DType, PaLMConfig
from palm.errors import CheckpointError, ConfigError, PalmError, TokenError, WeightsError
from palm.files.objects import MalformedError
from palm.files.schema import (
    FILE_NAME,
    NATURAL,
    NUMBER,
    OBJECT,
    PRINTABLE,
    SHA256,
    ByName,
    Record,
    check,
    one_of,
    whole,
)
from palm.files.sealed import read_format
from palm.files.write import what_lacks
from palm.spec.parameters import DTYPES, check_array, check_names, numpy_dtype, parameters
from palm.spec.tokens import check_tokens

FORMAT, VERSION, ABOUT = "palm-programs", 1, "program.json"
# So many positions the caches have unless a user wants others. One alone is no sequence.
LENGTH, LEAST = 2048, 2


class Kind(NamedTuple):
    """A kind of programs: whose they are, how the file of one ends, the file of weights if they are not in
    the programs, and the dtype of ids."""

    backend: Backend
    suffix: str
    weights: str | None
    ids: str

    @property
    def files(self) -> dict[str, str]:
        """The file of each program."""
        return {name: f"{name}{self.suffix}" for name in ("forward", "decode")}


KINDS: dict[str, Kind] = {
    "torch-export": Kind("torch", ".pt2", None, "int64"),
    "stablehlo": Kind("jax", ".jax", "weights.safetensors", "int32"),
}
_ABOUT = Record(
    {
        "kind": one_of(*KINDS),
        "config": OBJECT,
        "dtype": one_of(*DTYPES),
        "length": whole(LEAST, 2**31 - 1),
        "programs": ByName(PRINTABLE, PRINTABLE),
        "versions": ByName(PRINTABLE, PRINTABLE),
        "agreement": ByName(PRINTABLE, NUMBER),
        "files": ByName(FILE_NAME, Record({"bytes": NATURAL, "sha256": SHA256})),
    }
)


@dataclass(frozen=True)
class Programs:
    """The exported forward pass and decoding step of a model, as `palm.load_programs` gives them.

    `config`, `dtype`: of the model; `length`: the most positions a sequence may have; `about`: everything in
    program.json. The programs run on the CPU (torch), or on JAX's default device.
    """

    config: PaLMConfig
    dtype: DType
    length: int
    about: dict[str, Any]
    _run: Any

    def forward(self, tokens: Any) -> np.ndarray:
        """The logits of ids (..., n) -> (..., n, v), n at most `length`, in the programs' dtype.

        Raises `TokenError` for ids that the model has not, or for more of them.
        """
        ids = check_tokens(tokens, self.config)
        if ids.shape[-1] > self.length:
            raise self._too_long(ids.shape[-1])
        logits: np.ndarray = self._run.forward(ids.reshape(-1, ids.shape[-1]))
        return logits.reshape(*ids.shape, -1)

    def caches(self, batch: int) -> tuple[np.ndarray, ...]:
        """Empty caches for `decode`: keys and values (l, b, length, e), or keys alone where they are both."""
        return tuple(np.zeros(shape, numpy_dtype(self.dtype)) for shape in self._shapes(batch))

    def decode(
        self, tokens: Any, positions: Any, caches: tuple[Any, ...]
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Logits of the token that follows, of one new token of each sequence, and the caches with it.

        A sequence's tokens must come in order: that at position 3 sees what was kept of 0, 1 and 2.
        Shapes: ids and positions (b,), caches as `caches` gives them -> (b, v), the caches. Raises
        `TokenError` for ids that the model has not, for positions below 0 and from `length` on, and for
        caches of other shapes.
        """
        ids, at = check_tokens(tokens, self.config), np.asarray(positions)
        if ids.ndim != 1 or at.shape != ids.shape or at.dtype.kind not in "iu":
            raise TokenError(
                "tokens and positions must be integers of one shape (b,); got "
                f"shapes={ids.shape} and {at.shape}. Pass the next token of each sequence."
            )
        if at.min() < 0:
            raise TokenError(
                f"positions must be from 0 on; got {at.min()}. Count each sequence's tokens from 0."
            )
        if at.max() >= self.length:
            raise self._too_long(int(at.max()) + 1)
        found = [tuple(np.shape(cache)) for cache in caches]
        if found != self._shapes(len(ids)):
            raise TokenError(
                f"caches must have shapes {self._shapes(len(ids))}; got {found}. Pass caches({len(ids)}), or "
                "those that decode gave for these sequences."
            )
        logits, held = self._run.decode(ids, at.astype(np.int64), caches)
        return logits, held

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The likeliest continuation of each prompt, token by token; prompts are read the same way.

        Raises `TokenError` as `decode` does, and for no prompts or an empty one.
        """
        given = [check_tokens(prompt, self.config) for prompt in prompts]
        if not given or any(prompt.ndim != 1 for prompt in given):
            raise TokenError(
                "prompts must be lists of ids, at least one; got others. Pass [ids] for one prompt."
            )
        rows, caches = [prompt.tolist() for prompt in given], self.caches(len(given))
        ends = [len(row) + whole_number("max_new_tokens", max_new_tokens, 0) for row in rows]
        if max(ends) > self.length:
            raise self._too_long(max(ends))
        for at in range(max(ends) - 1):
            # A sequence that is complete repeats its last token, to which nobody listens.
            tokens = [row[min(at, len(row) - 1)] for row in rows]
            logits, caches = self.decode(tokens, np.full(len(rows), at), caches)
            for row, end, likeliest in zip(rows, ends, logits.argmax(-1).tolist(), strict=True):
                if at + 1 == len(row) < end:
                    row.append(likeliest)
        return [row[len(prompt) :] for row, prompt in zip(rows, given, strict=True)]

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        shape = (self.config.depth, batch, self.length, self.config.dim_head)
        return [shape] * (1 if self.config.keys_are_values else 2)

    def _too_long(self, got: int) -> TokenError:
        return TokenError(
            f"tokens must be at most {self.length}, the length that was exported; got {got}. "
            "Export the model with a larger length."
        )


def whole_number(name: str, value: Any, least: int) -> int:
    """The number. Raises `ConfigError` unless it is a whole one, and not less."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on; got {name}={value!r}. Choose one.")
    return int(value)


def load_programs(path: str | os.PathLike[str]) -> Programs:
    """The programs in a folder that `palm.export` wrote as "torch-export" or "stablehlo", verified.

    Each file is read once, and its SHA-256 compared before the framework gets its bytes. It needs the
    framework, and none of palm's models. A program is code: load those of people whom you trust. Raises
    `CheckpointError` for what is missing, damaged, of another version, not to be read by this version of the
    framework, or, with torch, by which it would unpickle objects or run code, and `MissingFrameworkError`.
    """
    path = Path(path)
    about = read_about(path)
    kind, files = KINDS[about["kind"]], about["files"]
    module = wing(kind.backend)
    config = _config(path, about)
    weights: dict[str, np.ndarray] = {}
    if kind.weights is not None:
        weights = read_tensors(path / kind.weights, files[kind.weights])
        _check_weights(path / kind.weights, config, about["dtype"], weights)
    contents = {}
    for name, file in kind.files.items():
        with verifying(path / file, files[file]) as reader:
            contents[name] = reader.read(reader.size)
    try:
        run = module.Programs(contents, weights)
    except PalmError:
        raise
    except Exception as error:  # whatever the framework raises for a program of another version
        raise CheckpointError(
            f"{path} must hold programs that this version of {kind.backend} can read; they are of "
            f"{about['versions']}: {str(error).partition(chr(10))[0]}. Export the model again."
        ) from error
    return Programs(config, about["dtype"], about["length"], about, run)


def read_about(path: Path) -> dict[str, Any]:
    """What the program.json of a folder says, verified against its own seal. Raises `CheckpointError`."""
    file = path / ABOUT
    try:
        content = read_format(file, FORMAT, (VERSION,), CheckpointError(damaged(file)))
    except OSError as error:
        raise CheckpointError(
            f"path must be a folder of exported programs with {ABOUT}; got path="
            f"{what_lacks(path, ABOUT, error)}. Pass what palm.export returned for a format of programs."
        ) from None
    try:
        check(content, _ABOUT)
        kind = KINDS[content["kind"]]
        wanted = {*kind.files.values(), *([] if kind.weights is None else [kind.weights])}
        if wanted != content["files"].keys():
            raise MalformedError(
                f"files must be {', '.join(sorted(wanted))}; got {[*content['files']]!r:.80}"
            )
    except MalformedError as error:
        raise CheckpointError(f"{file} must describe programs; {error}. Export the model again.") from None
    return content


def _config(path: Path, about: dict[str, Any]) -> PaLMConfig:
    try:
        config = PaLMConfig.from_dict(about["config"])
        if not config.is_resolved:
            raise ConfigError("it is not resolved.")
    except ConfigError as error:
        raise CheckpointError(f"{path / ABOUT} must hold a resolved config; {error}") from None
    return config


def _check_weights(file: Path, config: PaLMConfig, dtype: str, weights: dict[str, np.ndarray]) -> None:
    try:
        check_names(config, weights, source=str(file))
        for name, parameter in parameters(config).items():
            check_array(parameter, weights[name], source=str(file))
            if weights[name].dtype.name != dtype:
                raise WeightsError(f"{file}: {name} must be {dtype}; got {weights[name].dtype}.")
    except WeightsError as error:
        raise CheckpointError(f"{error} Export the model again.") from None
