"""Programs of the torch wing that run without palm, by torch.export: the forward pass, and a decoding step.

Attention is the textbook's: exact, of operations that every exporter knows, and for any length.
Letters: l layers, b batch, n sequence, s cached positions, e dim_head, v num_tokens.
Mirror: palm.jax_impl.exported; differs in that the programs hold their weights here.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
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
        `CheckpointError` for programs by which that would unpickle objects or load compiled code."""
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


def _check_plain(name: str, content: bytes) -> None:
    """Raise `CheckpointError` if torch.export.load would unpickle what is in an archive, or run its code."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.namelist()
        is_plain = len({*members}) == len(members) and all(
            _is_plain(member, archive.read(member)) for member in members
        )
    if not is_plain:
        raise CheckpointError(
            f"program {name} must hold tensors, JSON and nothing else; it holds pickled objects or compiled "
            "code. Export the model again."
        )


def _is_plain(member: str, content: bytes) -> bool:
    file = member.rpartition("/")[2]
    if file.startswith(("custom_obj", "opaque_obj")) or "/aotinductor/" in member:
        return False
    if file.endswith(".json"):
        return not re.search(rb'"use_pickle":\s*true', content)
    if file.endswith(".pt") and content:
        try:
            torch.load(BytesIO(content), weights_only=True)
        except Exception:  # whatever it is, torch.export.load would try again without the limit
            return False
    return True
