"""Named configs: the paper's sizes, the public weights, the originals' settings, byte-level ones for CPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from palm.config import PaLMConfig
from palm.fields import check_choice

# Table 1 of the paper; SwiGLU, parallel blocks, multi-query, rotary, tied embeddings, no biases (§2).
_PAPER = PaLMConfig(
    num_tokens=256_000, dim=4096, depth=32, heads=16, dim_head=256, positions="rotary", share_kv=False
).resolve("jax")

# The README example of both original repositories: PaLM-pytorch 0.2.2 and PaLM-jax 0.1.2.
_README = PaLMConfig(num_tokens=20_000, dim=512, depth=12, heads=8, dim_head=64, init="reference")

# The public weights, conceptofmind/PaLM: what palm-rlhf-pytorch computes, trained on C4 with 8,192 positions.
_PUBLIC = PaLMConfig(
    num_tokens=50_304, dim=768, depth=12, heads=8, dim_head=128, positions="xpos", init="reference"
).resolve("jax")

PRESETS: Mapping[str, PaLMConfig] = MappingProxyType(
    {
        # Byte-level, for CPU work; architecture open, so each backend builds its original's.
        "tiny": PaLMConfig(num_tokens=256, dim=64, depth=3, heads=4, dim_head=16),
        "small": PaLMConfig(num_tokens=256, dim=256, depth=6, heads=8, dim_head=32),
        "palm-8b": _PAPER,
        "palm-62b": dataclasses.replace(_PAPER, dim=8192, depth=64, heads=32),
        "palm-540b": dataclasses.replace(_PAPER, dim=18432, depth=118, heads=48),
        "conceptofmind/palm-150m": _PUBLIC,
        "conceptofmind/palm-410m": dataclasses.replace(_PUBLIC, dim=1024, depth=24),
        "conceptofmind/palm-1b": dataclasses.replace(_PUBLIC, dim=2048, depth=16),
        "conceptofmind/palm-2b": dataclasses.replace(_PUBLIC, dim=2560, depth=24),
        "palm_pytorch.palm_lite": _README.resolve("torch"),
        "palm_jax.palm": _README.resolve("jax"),
        # torch.nn.functional.layer_norm's default eps is LayerNorm's published 1e-5.
        "palm_pytorch.palm_pytorch": _README.resolve("jax"),
        # Its 1e-5 is added to the sum of squares; over the mean of them that is 1e-5 / dim.
        "palm_jax.palm_lite": dataclasses.replace(
            _README,
            positions="alibi",
            norm="rmsnorm",
            share_kv=True,
            norm_eps=1e-5 / 512,
            norm_eps_mode="add",
        ),
    }
)


def preset(name: str, **changes: Any) -> PaLMConfig:
    """The config of that name, with some fields changed: `palm.preset("small", depth=3)`.

    Raises `ConfigError` for an unknown name or field, or a value that breaks an invariant.
    """
    check_choice("preset", name, PRESETS)
    return PaLMConfig.from_dict({**PRESETS[name].to_dict(), **changes})
