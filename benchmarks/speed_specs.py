"""The sides of speed.py's comparisons as plain specs: all that a side's own process must know.

`against` in a spec names the side of its comparison that it is held against, one of the same architecture
where there is one; `left_out` says why a side takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costs import score_bytes
from timing import Spec

from palm.config import PaLMConfig

NUM_TOKENS = 256
# Whose attention forms all n² scores, and how many such sides live beside each other.
QUADRATIC = {"palm_lite": 3, "palm_pytorch": 3, "falcon": 3, "palm_jax": 1}
MEMORY_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for. `memory`: bytes of the machine, None where it is not the limit."""

    lengths: Sequence[int] = (512, 1024, 2048, 4096, 8192)
    memory_lengths: Sequence[int] = (2048, 8192)
    dim: int = 512
    depth: int = 8
    heads: int = 8
    dim_head: int = 64
    context: int = 1024
    batches: Sequence[int] = (1, 8)
    gpu_batch: int = 8
    megabytes: int = 512
    attention: str | None = None
    sides: Sequence[str] = ()
    memory: int | None = None

    @property
    def configs(self) -> dict[str, PaLMConfig]:
        """One size as each original has it: "alibi" with RMSNorm, "rotary" with LayerNorm."""
        config = PaLMConfig(
            num_tokens=NUM_TOKENS, dim=self.dim, depth=self.depth, heads=self.heads, dim_head=self.dim_head
        )
        return {"alibi": config.resolve("torch"), "rotary": config.resolve("jax")}


@dataclass(frozen=True)
class Maker:
    """Makes the specs of one job at one length and batch."""

    options: Options
    job: str
    length: int
    batch: int = 1

    def palm(self, backend: str, positions: str, precision: str = "float32", **more: Any) -> Spec:
        """A wing, in its original's architecture unless its name says another."""
        own = {"torch": "alibi", "jax": "rotary"}[backend]
        name = f"palm {backend}" + (f" {positions}" if positions != own else "")
        counterpart = None
        if precision == "bfloat16":
            counterpart, name = name, f"{name}, bf16"
        return self._spec(
            name,
            backend,
            "palm",
            positions,
            precision,
            **{"against": counterpart, "attention": self.options.attention, **more},
        )

    def peer(self, model: str, positions: str, against: str, **more: Any) -> Spec:
        """A side of another library."""
        precision, cache = more.pop("precision", "float32"), more.get("cache")
        name = ", ".join(filter(None, [model, cache, "bf16" if precision == "bfloat16" else None]))
        framework = "jax" if model == "palm_jax" else "torch"
        spec = self._spec(name, framework, model, positions, precision, against=against, **more)
        if reason := self._left_out(model, positions):
            spec["left_out"] = reason
        return spec

    def limit(self, framework: str, *kinds: str) -> Spec:
        """A side that measures what the machine can do."""
        own = {"framework": framework, "model": "limits", "job": "limits"}
        return {"name": f"limit {framework}", **own, "kinds": kinds, "megabytes": self.options.megabytes}

    def _spec(
        self, name: str, framework: str, model: str, positions: str, precision: str, **more: Any
    ) -> Spec:
        return {
            **{"name": name, "framework": framework, "model": model, "job": self.job},
            **{"precision": precision, "batch": self.batch, "length": self.length},
            **{"config": self.options.configs[positions].to_dict(), **more},
        }

    def _left_out(self, model: str, positions: str) -> str | None:
        config, memory = self.options.configs[positions], self.options.memory
        if model == "falcon" and config.inner_dim != config.dim:
            return f"its heads·dim_head must be dim={config.dim}; {config.inner_dim} was asked for"
        needed = score_bytes(config, self.batch, self.length, training=self.job == "training")
        together = QUADRATIC.get(model, 0) * needed
        if memory is not None and together > MEMORY_SHARE * memory:
            beside = " with those beside it" if QUADRATIC[model] > 1 else ""
            return f"its scores would take {together / 2**30:.0f} GiB of {memory / 2**30:.0f}{beside}"
        return None
