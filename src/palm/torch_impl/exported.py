"""Programs of the torch wing that run without palm, by torch.export: the forward pass, and a decoding step.

Attention is the textbook's: exact, of operations that every exporter knows, and for any length.
Letters: l layers, b batch, n sequence, s cached positions, e dim_head, v num_tokens.
Mirror: palm.jax_impl.exported; differs in that the programs hold their weights here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from palm.errors import CheckpointError
from palm.spec.arrays import Named
from palm.spec.positions import check_xpos
from palm.torch_impl.block import Block
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import widen
from palm.torch_impl.position import masked_scores
from palm.torch_impl.weights import to_array, to_tensor
from palm.tracing.turns import shared


class _Step(nn.Module):
    """The next token of each sequence goes through the model, and its keys and values into the caches."""

    def __init__(self, model: PaLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, positions: Tensor, caches: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Shapes: tokens and positions (b,), caches (l, b, s, e) -> logits (b, v), caches."""
        model, config = self.model, self.model.config
        caches = tuple(cache.clone() for cache in caches)
        keys, values = caches[0], caches[-1]
        x = model.embedding(tokens)
        rotations, slopes = model.positions(keys.shape[2], x)
        if rotations is not None:
            (cos, sin), (of_keys, too) = rotations
            rotations = (cos[positions], sin[positions]), (of_keys[positions], too[positions])
        rows = torch.arange(tokens.shape[0], device=x.device)
        distance = positions[:, None] - torch.arange(keys.shape[2], device=x.device)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            y = block.norm(x)
            # The sequences stand in a row, each at a position of its own, as else the tokens of one do.
            q, k, v = block.attention.projected(y, rotations)
            for cache, new in zip(caches, (k, v), strict=False):
                cache[i, rows, positions] = new
            scores = torch.einsum("bhe,bje->bhj", widen(q) * config.dim_head**-0.5, widen(keys[i]))
            weights = masked_scores(scores, slopes, distance).softmax(-1)
            attended = torch.einsum("bhj,bje->bhe", weights, widen(values[i])).to(x.dtype)
            x = x + block.attention.out(attended.flatten(1)) + block.feedforward(y)
        return model.logits(model.norm(x)), caches


@shared()
def make_programs(model: PaLM, length: int) -> dict[str, bytes]:
    """The programs "forward" and "decode" of a model with textbook attention, as torch.export saves them.

    forward: tokens (b, n) -> logits (b, n, v), n at most `length`. decode: tokens (b,), their positions (b,)
    and the caches of keys and of values (l, b, length, e), where keys are values only one -> logits (b, v),
    the caches. Any b. The weights are in both. Raises `TokenError` for more positions than xPos has.
    """
    config = model.config
    if config.positions == "xpos":
        check_xpos(length, config.xpos_base)
    # Sizes of examples: no 0 and no 1, which would be taken for constants.
    b, n = Dim("b", min=1), Dim("n", min=1, max=length)
    ids = torch.zeros(3, dtype=torch.long)
    cache = model.embedding.weight.new_zeros(config.depth, 3, length, config.dim_head)
    caches = (cache,) if config.keys_are_values else (cache, cache.clone())
    of_step = ({0: b}, {0: b}, tuple({1: b} for _ in caches))
    with torch.no_grad():
        forward = torch.export.export(model, (ids.new_zeros(3, 2),), dynamic_shapes=({0: b, 1: n},))
        decode = torch.export.export(_Step(model), (ids, ids.clone(), caches), dynamic_shapes=of_step)
    return {"forward": _saved(forward), "decode": _saved(decode)}


class Programs:
    """Programs that `make_programs` made, read back, and run on NumPy's arrays where they were made."""

    def __init__(self, contents: Mapping[str, bytes], weights: Named) -> None:
        """`contents` by program; `weights` are in these already. Raises what torch.export.load does, and
        `CheckpointError` for programs with anything that `make_programs` does not write."""
        for name, content in contents.items():
            _check_plain(name, content)
        self._forward, self._decode = (
            torch.export.load(BytesIO(contents[name])).module() for name in ("forward", "decode")
        )

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """Shapes: (b, n) -> (b, n, v)."""
        with torch.no_grad():
            return to_array(self._forward(torch.from_numpy(tokens)))

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, caches: tuple[Any, ...]
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Shapes: tokens and positions (b,), caches (l, b, s, e) -> logits (b, v), caches, torch's."""
        held = tuple(to_tensor(cache) if isinstance(cache, np.ndarray) else cache for cache in caches)
        with torch.no_grad():
            logits, held = self._decode(torch.from_numpy(tokens), torch.from_numpy(positions), held)
        return to_array(logits), held


def _saved(program: torch.export.ExportedProgram) -> bytes:
    program.example_inputs = None  # they would be pickled
    stream = BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


# What `make_programs` writes, and no more: torch unpickles, evaluates or executes much of what else it reads.
_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/(weight_[0-9]+|model_weights_config\.json)|constants/model_constants_config\.json"
    r"|sample_inputs/model\.pt)"
)
_ARGUMENTS = (
    "bool device expr float int ints layout name none optional_tensors scalar_type string sym_int sym_ints "
    "tensor tensors"
)
_KEY = re.compile(rf"(?!as_)[A-Za-z_][A-Za-z0-9_.]*|as_({_ARGUMENTS.replace(' ', '|')})")
_OPERATIONS = (
    "_assert_tensor_metadata add arange clamp clone cos div einsum embedding flatten full index index_put_ "
    "linear lt masked_fill mean mul ne neg outer pow promote_types reshape rsqrt select silu sin slice "
    "softmax square stack sub sum sym_size to unbind unflatten unsqueeze where"
)
_SYMBOL = r"Symbol\('s[0-9]+', positive=True, integer=True\)"
_NUMBER = r"Integer\([0-9]{1,18}\)"
_SIZE = r"L\['[a-z]+'\](\[[0-9]\])?\.size\(\)\[[0-9]\]"
_GUARD = rf"{_SIZE} == ([0-9]+|{_SIZE})"
_DOTTED, _PRINTABLE = r"([A-Za-z_][A-Za-z0-9_.]*)?", r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*"
_TREE = r'([][{}:, 1]|null|"(type|context|children_spec|builtins\.tuple|builtins\.dict|null|\[\])")*'
# Texts become source code: names of tensors and of arguments too, which are what no key here has.
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_TEXTS = {
    key: re.compile(pattern)
    for key, pattern in {
        "as_float": "-?Infinity|NaN",
        "as_string": "[a-z.,>-]*",  # an equation of einsum
        "expr_str": rf"(Mul\(|Add\(|Pow\({_SYMBOL}, {_NUMBER}\)|{_NUMBER}|{_SYMBOL}|, |\))*",
        "fqn": _DOTTED,
        "guards_code": rf"{_GUARD}( or {_GUARD})*",
        "in_spec": _TREE,
        "nn_module_stack": _PRINTABLE,
        "out_spec": _TREE,
        "parameter_name": _DOTTED,
        "path_name": "weight_[0-9]+",
        "stack_trace": rf"{_PRINTABLE}(\n{_PRINTABLE})*",
        "target": rf"torch\.ops\.aten\.({_OPERATIONS.replace(' ', '|')})\.[A-Za-z][A-Za-z_]*",
        "torch_fn": _PRINTABLE,
        "torch_version": "[A-Za-z0-9.+-]*",
    }.items()
}


def _check_plain(name: str, content: bytes) -> None:
    """Raise `CheckpointError` for an archive with anything that `make_programs` does not write."""
    # What torch will read, by its own reader. If that fails, torch.export.load takes zipfile.
    archive = torch._C.PyTorchFileReader(BytesIO(content))
    members = archive.get_all_records()
    with zipfile.ZipFile(BytesIO(content)) as same:
        is_same = sorted(member.partition("/")[2] for member in same.namelist()) == sorted({*members})
    strange = [] if is_same else ["members of one name, or outside of its folder"]
    strange += [member for member in members if not _MEMBER.fullmatch(member)]
    for member in () if strange else members:
        if member.endswith(".json"):
            strange += _strange("", json.loads(archive.get_record(member).decode(), object_pairs_hook=_once))
        elif member.endswith(".pt") and archive.get_record_size(member):
            strange.append(f"pickled objects in {member}")
    if strange:
        raise CheckpointError(
            f"program {name} must hold tensors, JSON and nothing else; it may hold pickled objects or "
            f"code, by what palm does not write: {strange[0]!r:.80}. Export the model again."
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no reader may take another of two values of one name."""
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("an object in it has two values of one name")
    return held


def _strange(key: str, value: Any) -> Iterator[str]:
    """The keys and texts in a JSON value that `make_programs` does not write; `key` is whose value it is."""
    if key == "use_pickle":
        if value is not False:
            yield key
    elif isinstance(value, dict):
        for name, held in value.items():
            if not _KEY.fullmatch(name):
                yield name
            yield from _strange(name, held)
    elif isinstance(value, list):
        for held in value:
            yield from _strange(key, held)
    elif isinstance(value, str) and not _TEXTS.get(key, _NAME).fullmatch(value):
        yield value
