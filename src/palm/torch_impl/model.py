"""The PaLM model of the torch wing.

Letters: n sequence, d dim, v num_tokens. Mirror: palm.jax_impl.model; differs in that blocks are a list
here and a stack there, and that weights are filled in afterwards here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palm.config import PaLMConfig
from palm.errors import BackendError, TokenError
from palm.recipes import Remat, check_remat
from palm.spec.parameters import parameters
from palm.spec.taps import Tap, untapped
from palm.spec.tokens import NO_VALUES, check_range, check_segments, check_shape
from palm.torch_impl.attention import check_path
from palm.torch_impl.block import Block, recomputed
from palm.torch_impl.linear import Linear, linear
from palm.torch_impl.norm import Norm
from palm.torch_impl.pieces import is_placed
from palm.torch_impl.position import Rotations, alibi_slopes, rotation_tables
from palm.torch_impl.private import transformed
from palm.torch_impl.shapes import Features, Hidden, Logits, Scores, Segments, Tokens


class PaLM(nn.Module):
    """PaLM as an `nn.Module`: tokens (..., n) -> logits (..., n, v).

    embed; `depth` parallel blocks; norm; times the transposed embedding (or the untied matrix), times
    `config.logit_scale`. Source: PaLM (arXiv:2204.02311) §2.

    Build it with `palm.build`. The constructor only allocates, on any device, "meta" too; `from_arrays` or
    `load_state_dict` fills it. Its state_dict holds the parameters of `spec.parameters` and nothing derived.
    """

    def __init__(
        self,
        config: PaLMConfig,
        *,
        attention: str = "blockwise",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`attention` is a path of `palm.torch_impl.ATTENTION`.

        Raises `ConfigError` for another path, one that lacks ALiBi where the config has it, and unless the
        config is resolved.
        """
        super().__init__()
        parameters(config)  # raises ConfigError unless the config is resolved
        check_path(attention, config)
        device = None if device is None else torch.device(device)
        self.config, self.path = config, attention
        # Not nn.Embedding(…): on "meta" its initialisation imports torch's compiler, which takes seconds.
        empty = torch.empty(config.num_tokens, config.dim, device=device, dtype=dtype)
        self.embedding = nn.Embedding.from_pretrained(empty, freeze=False)
        self.blocks = nn.ModuleList(
            Block(config, attention, device=device, dtype=dtype) for _ in range(config.depth)
        )
        self.norm = Norm(config, device=device, dtype=dtype)
        if not config.tie_embeddings:
            self.unembedding = Linear(config.dim, config.num_tokens, device=device, dtype=dtype)

    def forward(
        self,
        tokens: Tokens,
        *,
        segments: Segments | None = None,
        remat: Remat = False,
        features: bool = False,
        tap: Tap = untapped,
    ) -> Hidden | Logits:
        """Logits of tokens; any integer dtype, any batch dimensions, also none.

        With `segments`, any integers, a position sees only those earlier ones that have its own: documents
        that are packed into one sequence, or padding (0) and text (1).

        `remat` names what the backward pass computes again instead of storing it: True whole blocks,
        "feedforward" that part of them; `features` gives what the output layer reads, (..., n, d), instead
        of logits. `tap(name, value)` is called with every tap of `palm.activations`, in dataflow order, and
        returns what stands for it from there on; what is computed again is tapped again.
        Shapes: (..., n) -> (..., n, v). Raises `ConfigError` for another `remat`, `TokenError`, and
        `BackendError` for a model on a mesh, which palm's functions take. Ids on an accelerator are not read,
        for the host would wait for it, nor are those inside torch.compile and the transforms of torch.func:
        there an id outside the vocabulary makes the logits of its sequence NaN.
        """
        check_remat(remat)
        if segments is not None:
            check_segments(segments.shape, not segments.is_floating_point(), tokens.shape)
        if not torch.compiler.is_compiling() and is_placed(self.embedding.weight):
            raise BackendError(
                "a model must have whole weights to be called; got one whose weights lie on a mesh. "
                'Call palm.convert(model, backend="torch") in all of them, for a whole one.'
            )
        x = tap("embed", self._embedded(tokens))
        rotation, slopes = self.positions(tokens.shape[-1], x)
        for i, block in enumerate(self.blocks):
            inputs = (x, rotation, slopes, segments, remat, _of_block(i, tap))
            x = recomputed(block, *inputs) if remat is True else block(*inputs)
        y = tap("norm", self.norm(x))
        return y if features else tap("logits", self.logits(y))

    if TYPE_CHECKING:  # nn.Module's own says nothing of what it gives

        def __call__(
            self,
            tokens: Tensor,
            *,
            segments: Tensor | None = ...,
            remat: Remat = ...,
            features: bool = ...,
            tap: Tap = ...,
        ) -> Tensor:
            """`forward`, with its hooks."""

    def activations(self, tokens: Tensor, segments: Tensor | None = None) -> dict[str, Tensor]:
        """Every tap of the forward pass, in dataflow order; the last is `logits`."""
        taps = {}

        def keep(name: str, value: Tensor) -> Tensor:
            taps[name] = value
            return value

        # A subclass's own `forward` may know of no segments.
        beside: dict[str, Any] = {} if segments is None else {"segments": segments}
        self(tokens, **beside, tap=keep)
        return taps

    def _embedded(self, tokens: Tokens) -> Hidden:
        """Shapes: (..., n) -> (..., n, d)."""
        check(tokens, self.config, meta=self.embedding.weight.is_meta)
        ids = tokens.long()
        if _readable(ids):
            return self.embedding(ids)
        known = ids.clamp(0, self.config.num_tokens - 1)
        return self.embedding(known).masked_fill((ids != known)[..., None], torch.nan)

    def positions(self, length: int, x: Tensor) -> tuple[Rotations | None, Tensor | None]:
        """What the blocks need of positions, formed once a pass: rotary's tables, or ALiBi's slopes."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.config.rotates:
            return rotation_tables(self.config, length, device=x.device, dtype=dtype), None
        return None, alibi_slopes(self.config, device=x.device, dtype=dtype)

    def logits(self, y: Features) -> Scores:
        """The output layer. Shapes: y (..., n, d) -> (..., n, v)."""
        tied = self.config.tie_embeddings
        logits = linear(y, self.embedding.weight) if tied else self.unembedding(y)
        return logits * self.config.logit_scale


def _of_block(i: int, tap: Tap) -> Tap:
    return tap if tap is untapped else lambda name, value: tap(f"blocks.{i}.{name}", value)


def check(tokens: Tensor, config: PaLMConfig, *, meta: bool = False) -> None:
    """Raise `TokenError` for tokens no model accepts; by their ids only where these can be read."""
    if not isinstance(tokens, Tensor):
        raise TokenError(f"tokens must be a torch.Tensor; got {type(tokens).__name__}. Use torch.as_tensor.")
    is_integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    check_shape(tuple(tokens.shape), is_integer, str(tokens.dtype))
    if tokens.is_meta:
        if meta:  # nothing has values: shapes are all that is asked for
            return
        raise TokenError(NO_VALUES)
    if _readable(tokens):
        low, high = tokens.long().aminmax()
        check_range(int(low), int(high), config)


def _readable(tokens: Tensor) -> bool:
    """Whether the ids are values in this machine's memory: to read others, the host waits for a device."""
    return (
        tokens.device.type == "cpu"
        and type(tokens) is Tensor
        and not torch.compiler.is_compiling()
        and not transformed()
    )
