"""The one config that drives both wings.

A config may leave `positions`, `norm` and `share_kv` open; each backend then builds its original's
architecture. `resolve` writes the choices out, and a resolved config is one function in both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from palm.errors import BackendError, ConfigError
from palm.fields import check_choice, from_fields, integer, named_fields, parse_json, real

Positions = Literal["alibi", "rotary", "xpos"]
NormKind = Literal["rmsnorm", "layernorm"]
EpsMode = Literal["clamp", "add"]
Init = Literal["paper", "reference"]
Backend = Literal["torch", "jax"]
DType = Literal["float64", "float32", "bfloat16"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)

# What each backend's original computes: palm_pytorch.palm_lite and palm_jax.palm.
_ORIGINALS: dict[Backend, dict[str, Any]] = {
    "torch": {"positions": "alibi", "norm": "rmsnorm", "share_kv": True},
    "jax": {"positions": "rotary", "norm": "layernorm", "share_kv": False},
}
# The published eps of each norm and how it enters the denominator.
_NORM_DEFAULTS: dict[NormKind | None, tuple[float, EpsMode]] = {
    "rmsnorm": (1e-8, "clamp"),
    "layernorm": (1e-5, "add"),
}
# Fields that version 0.1.0 does not know; a model of its kinds has their defaults.
_SINCE_0_1_0 = ("xpos_base", "qk_norm")
_CHOICES: dict[str, tuple[str, ...]] = {
    "positions": get_args(Positions),
    "norm": get_args(NormKind),
    "norm_eps_mode": get_args(EpsMode),
    "init": get_args(Init),
}


@named_fields("a config")
@dataclass(frozen=True, kw_only=True)
class PaLMConfig:
    """A PaLM model: the complete description of one function of its weights and tokens.

    Source: PaLM (arXiv:2204.02311) §2; the field names are those of the two original repositories.

    Raises `ConfigError` if a field is unknown, missing, or breaks its invariant. Instances are frozen and
    hashable.
    """

    num_tokens: int
    """Vocabulary size v."""
    dim: int
    """Width d of the residual stream."""
    depth: int
    """Number of parallel blocks."""
    heads: int = 8
    """Number of query heads h. There is always one key head and one value head (multi-query)."""
    dim_head: int = 64
    """Width e of each head. h·e is independent of `dim`. It must be even with rotary and xPos."""
    ff_mult: int = 4
    """Width of the feed-forward over `dim`: f = ff_mult·d."""
    positions: Positions | None = None
    """How attention knows positions: ALiBi biases, rotary embeddings, or rotary with xPos, which makes scores
    fade with distance. None: as the backend's original."""
    norm: NormKind | None = None
    """RMSNorm or LayerNorm, neither with a bias. None: as the backend's original."""
    share_kv: bool | None = None
    """Whether one tensor serves as keys and values. None: as the backend's original."""
    norm_eps: float | None = None
    """The eps of the norms. None: the norm's published value, 1e-8 for RMSNorm and 1e-5 for LayerNorm."""
    norm_eps_mode: EpsMode | None = None
    """With m the mean square (about the mean for LayerNorm), clamp divides by max(sqrt(m), eps) and add
    divides by sqrt(m + eps). None: clamp for RMSNorm, add for LayerNorm."""
    rope_theta: float = 10_000.0
    """Base θ of the rotary frequencies."""
    xpos_base: float = 512.0
    """Over how many positions xPos multiplies the scores of a pair by its s_p once."""
    qk_norm: bool = False
    """Whether each head of the queries, and the keys, are divided by their L2 norm over `dim_head` and
    multiplied by a learned scale, before rotary. The scores are multiplied by dim_head^-1/2 all the same."""
    tie_embeddings: bool = True
    """Whether the logits use the transposed embedding. Otherwise they have a matrix of their own."""
    init: Init = "paper"
    """The initial embeddings: paper draws them from N(0, 1) and multiplies the logits by dim^-1/2; reference
    draws them from N(0, 0.02²) and does not scale the logits. This is part of the function, not only of
    its start."""

    def __post_init__(self) -> None:
        for name in ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=1))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices, optional=name != "init")
        for name in ("share_kv", "qk_norm", "tie_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "share_kv"):
                raise ConfigError(f"{name} must be true or false; got {name}={value!r}. Use True or False.")
        object.__setattr__(self, "rope_theta", real("rope_theta", self.rope_theta, least=1.0, strict=True))
        object.__setattr__(self, "xpos_base", real("xpos_base", self.xpos_base, least=1.0))
        if self.norm_eps is not None:
            # The clamp convention squares eps, which must stay a normal float32.
            eps = real("norm_eps", self.norm_eps, least=1e-18, below=1e18, strict=True)
            object.__setattr__(self, "norm_eps", eps)
        if self.rotates and self.dim_head % 2:
            raise ConfigError(
                f"dim_head must be even because rotary rotates pairs; got dim_head={self.dim_head}. "
                f"Use {self.dim_head + 1}{f' or {self.dim_head - 1}' if self.dim_head > 1 else ''}."
            )

    @property
    def is_resolved(self) -> bool:
        """Whether no choice is left to a backend."""
        return None not in (self.positions, self.norm, self.share_kv, self.norm_eps, self.norm_eps_mode)

    def resolve(self, backend: Backend) -> PaLMConfig:
        """Write out every open choice as `backend`'s original has it.

        The result builds one and the same function in both backends. A resolved config is returned
        unchanged. Raises `BackendError` for an unknown backend, `ConfigError` if a choice written
        out breaks an invariant (rotary with an odd `dim_head`).
        """
        check_backend(backend)
        original = _ORIGINALS[backend]
        chosen = {name: value for name, value in original.items() if getattr(self, name) is None}
        eps, mode = _NORM_DEFAULTS[chosen.get("norm") or self.norm]
        if self.norm_eps is None:
            chosen["norm_eps"] = eps
        if self.norm_eps_mode is None:
            chosen["norm_eps_mode"] = mode
        return dataclasses.replace(self, **chosen)

    @property
    def eps(self) -> float:
        """`norm_eps` of a resolved config."""
        assert self.norm_eps is not None
        return self.norm_eps

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated: with rotary, with xPos or without."""
        return self.positions in ("rotary", "xpos")

    @property
    def keys_are_values(self) -> bool:
        """Whether attention reads one and the same vector as key and as value."""
        return self.share_kv is True and not self.rotates and not self.qk_norm

    @property
    def inner_dim(self) -> int:
        """Width h·e of all query heads together."""
        return self.heads * self.dim_head

    @property
    def ff_dim(self) -> int:
        """Width f = ff_mult·d of the feed-forward."""
        return self.ff_mult * self.dim

    @property
    def logit_scale(self) -> float:
        """Factor on the logits: dim^-1/2 with the paper's initialisation (§5), otherwise 1."""
        return self.dim**-0.5 if self.init == "paper" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PaLMConfig:
        """Inverse of `to_dict`. Raises `ConfigError` for unknown or missing fields."""
        return from_fields(cls, fields, "a config")

    def to_json(self) -> str:
        """The config as a JSON object, one field a line, for version 0.1.0 too if it knows such a model."""
        fields = self.to_dict()
        for name in _SINCE_0_1_0:
            if fields[name] == getattr(PaLMConfig, name):
                del fields[name]
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PaLMConfig:
        """Inverse of `to_json`. Raises `ConfigError` if the text is not such an object."""
        return cls.from_dict(parse_json(text, "a config"))


def check_backend(backend: object) -> None:
    """Raise `BackendError` unless `backend` is one of palm's."""
    if backend not in BACKENDS:
        raise BackendError(
            f"backend must be one of {', '.join(BACKENDS)}; got backend={backend!r}. Choose one of them."
        )
