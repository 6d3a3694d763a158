"""Models of other libraries in palm's sizes: the torch originals, x-transformers, Hugging Face's Falcon.

Each takes the resolved config of a palm model and has as many parameters, to 2 %.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from palm.config import PaLMConfig


def palm_lite(config: PaLMConfig, length: int) -> torch.nn.Module:
    return _original("palm_pytorch.palm_lite", config)


def palm_pytorch(config: PaLMConfig, length: int) -> torch.nn.Module:
    return _original("palm_pytorch.palm_pytorch", config)


def _original(source: str, config: PaLMConfig) -> torch.nn.Module:
    fields = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
    return importlib.import_module(source).PaLM(**{field: getattr(config, field) for field in fields})


def x_transformers(config: PaLMConfig, length: int) -> torch.nn.Module:
    """Its decoder with one key and value head, rotary, SwiGLU, no biases and fused attention.

    Attention and feed-forward come one after the other there: it has no parallel block of palm's kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from x_transformers import Decoder, TransformerWrapper  # noqa: PLC0415 - only who compares has it

        layers = Decoder(
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            attn_dim_head=config.dim_head,
            attn_kv_heads=1,
            attn_flash=True,
            rotary_pos_emb=True,
            ff_mult=config.ff_mult,
            ff_glu=True,
            ff_swish=True,
            ff_no_bias=True,
        )
        return TransformerWrapper(
            num_tokens=config.num_tokens,
            max_seq_len=length,
            use_abs_pos_emb=False,
            tie_embedding=True,
            attn_layers=layers,
        )


def falcon(config: PaLMConfig, length: int) -> torch.nn.Module:
    """Multi-query, parallel blocks, rotary; its feed-forward has two matrices to SwiGLU's three.

    Its heads divide `dim` among them, so h·e must be dim.
    """
    from transformers import FalconConfig, FalconForCausalLM  # noqa: PLC0415 - only who compares has it

    if config.inner_dim != config.dim:
        raise ValueError(f"heads·dim_head must be dim={config.dim} for Falcon; got {config.inner_dim}.")
    return FalconForCausalLM(
        FalconConfig(
            vocab_size=config.num_tokens,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            ffn_hidden_size=3 * config.ff_dim // 2,
            max_position_embeddings=length,
            multi_query=True,
            parallel_attn=True,
            alibi=False,
            bias=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def logits(output: Any) -> torch.Tensor:
    """The logits in what a model's forward pass gave."""
    return output if isinstance(output, torch.Tensor) else output.logits


def cache(model: torch.nn.Module, kind: str, size: int) -> Any:
    """Falcon's cache of keys and values: one that grows, or one with room for `size` positions."""
    from transformers import DynamicCache, StaticCache  # noqa: PLC0415 - only who compares has it

    return (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=size)
    )


MODELS = {
    "palm_lite": palm_lite,
    "palm_pytorch": palm_pytorch,
    "x-transformers": x_transformers,
    "falcon": falcon,
}
