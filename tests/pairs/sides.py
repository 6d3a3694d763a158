"""Models of published libraries, in PyTorch and in JAX, with the same weights: tiny and random."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported
IDS = np.random.default_rng(0).integers(0, 60, (1, 12))
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, **_LAYERS}


@dataclass(frozen=True)
class Pair:
    """One architecture in two libraries.

    `model`, `settings`: the class of `transformers` and its configuration. `port`: the other one's program
    with the weights of such a model; it may be given settings to change.
    """

    name: str
    model: str
    settings: Mapping[str, Any]
    port: Callable[..., Callable[..., Any]]
    inputs: np.ndarray

    def torch(self, **changed: Any) -> Called:
        """The PyTorch model, with other settings and the same weights."""
        import transformers

        def built(settings: Mapping[str, Any]) -> Any:
            torch.manual_seed(0)
            cls = getattr(transformers, self.model)
            return cls(cls.config_class(**settings)).eval()

        right = built(self.settings)
        for p in right.parameters():  # so that no norm is of ones, and no bias of zeros
            p.data += torch.randn(p.shape) * 0.05
        if changed:
            other = built({**self.settings, **changed})
            other.load_state_dict(right.state_dict())
            return Called(other)
        return Called(right)


class Called(nn.Module):
    """A model of `transformers` from its input to its one output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cached = {} if x.is_floating_point() else {"use_cache": False}
        return self.model(x, **cached)[0]


def _penzai(
    module: str, convert: str, old_names: Callable[[Any], Mapping[str, Any]], renamed: Any = None
) -> Any:
    """A port that penzai's own converter makes; it reads the names that older configurations have."""

    def port(model: Any, **changed: Any) -> Callable[..., Any]:
        import importlib

        import jax.numpy as jnp
        from penzai import pz

        held = importlib.import_module(f"penzai.models.transformer.variants.{module}")
        config, own = model.config, model.state_dict
        before = dict(vars(config))
        for name, value in {**old_names(config), **changed}.items():
            setattr(config, name, value)
        if renamed is not None:
            model.state_dict = lambda: {n.replace(*renamed): x for n, x in own().items()}
        try:
            ported = getattr(held, convert)(model)
        finally:
            vars(config).clear()
            vars(config).update(before)
            vars(model).pop("state_dict", None)

        def penzai(ids: Any) -> Any:
            positions = pz.nx.wrap(jnp.arange(ids.shape[1]), "seq")
            found = ported(pz.nx.wrap(ids, "batch", "seq"), token_positions=positions)
            return found.unwrap("batch", "seq", "vocabulary")

        return penzai

    return port


def _llama_names(config: Any) -> Mapping[str, Any]:
    return {"rope_theta": config.rope_parameters["rope_theta"]}


def _neox_names(config: Any) -> Mapping[str, Any]:
    rope = config.rope_parameters
    default = type(config)().rope_parameters
    return {
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rope["partial_rotary_factor"],
        "rope_parameters": default,
    }


class _Loader:
    """What KerasHub's converters read weights from."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weights = weights

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        x = self.weights[hf_weight_key].numpy()
        keras_variable.assign(x if hook_fn is None else hook_fn(x, list(keras_variable.shape)))


def _called(backbone: Any) -> Callable[..., Any]:
    import jax.numpy as jnp

    def keras_hub(ids: Any) -> Any:
        return backbone({"token_ids": ids, "padding_mask": jnp.ones_like(ids)})

    return keras_hub


def _keras(module: str, prefix: str = "") -> Any:
    """A port that KerasHub's own converter makes."""

    def port(model: Any, **changed: Any) -> Callable[..., Any]:
        import importlib

        held = importlib.import_module(f"keras_hub.src.utils.transformers.{module}")
        settings = model.config.to_dict()
        backbone = held.backbone_cls(**{**held.convert_backbone_config(settings), **changed})
        weights = {f"{prefix}{name}": x for name, x in model.state_dict().items()}
        held.convert_weights(backbone, _Loader(weights), settings)
        return _called(backbone)

    return port


def _falcon(model: Any, **changed: Any) -> Callable[..., Any]:
    """KerasHub has Falcon, but no converter for it."""
    import keras_hub

    c, held = model.config, {name: x.numpy() for name, x in model.state_dict().items()}
    heads, width = c.num_attention_heads, c.hidden_size
    settings = {"vocabulary_size": c.vocab_size, "num_layers": c.num_hidden_layers, "hidden_dim": width}
    settings |= {"num_attention_heads": heads, "intermediate_dim": c.ffn_hidden_size}
    backbone = keras_hub.models.FalconBackbone(**{**settings, **changed})

    def load(layer: Any, name: str, form: Any = lambda x: x) -> None:
        weight, bias = layer.weights
        weight.assign(form(held[f"{name}.weight"]))
        bias.assign(held[f"{name}.bias"])

    backbone.token_embedding.embeddings.assign(held["word_embeddings.weight"])
    load(backbone.final_layernorm, "ln_f")
    for i, layer in enumerate(backbone.transformer_layers):
        at, attention = f"h.{i}.", layer.attention_layer
        load(layer.input_layernorm, f"{at}input_layernorm")
        load(layer.post_attention_layernorm, f"{at}post_attention_layernorm")
        load(attention.output_dense, f"{at}self_attention.dense", np.transpose)
        load(layer.dense_h_to_4h, f"{at}mlp.dense_h_to_4h", np.transpose)
        load(layer.dense_4h_to_h, f"{at}mlp.dense_4h_to_h", np.transpose)
        fused = f"{at}self_attention.query_key_value"
        weights = held[f"{fused}.weight"].reshape(heads, 3, -1, width).transpose(1, 3, 0, 2)
        biases = held[f"{fused}.bias"].reshape(heads, 3, -1).transpose(1, 0, 2)
        for dense, w, b in zip(("query", "key", "value"), weights, biases, strict=True):
            getattr(attention, f"{dense}_dense").kernel.assign(w)
            getattr(attention, f"{dense}_dense").bias.assign(b)
    return _called(backbone)


def _vit(model: Any, **changed: Any) -> Callable[..., Any]:
    """Equimo's ViT, by its own constructor."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from equimo.models import VisionTransformer

    c = model.config
    held = {name.removeprefix("vit."): jnp.asarray(x.numpy()) for name, x in model.state_dict().items()}
    settings = {"reg_tokens": 0, "mlp_ratio": 2, "global_pool": "token", "num_classes": c.num_labels}
    settings |= {"act_layer": "exactgelu", "eps": c.layer_norm_eps, "key": jax.random.key(0)}
    shape = (c.image_size, 3, c.hidden_size, c.patch_size, c.num_attention_heads, [c.num_hidden_layers])
    vit = VisionTransformer(*shape, **{**settings, **changed})
    vit = eqx.tree_at(
        lambda v: (v.cls_token, v.global_pos_embed.weight, v.patch_embed.proj.bias),
        vit,
        (
            held["embeddings.cls_token"][0],
            held["embeddings.position_embeddings"][0],
            held["embeddings.patch_embeddings.projection.bias"][:, None, None],
        ),
    )
    patches = held["embeddings.patch_embeddings.projection.weight"]
    vit = eqx.tree_at(lambda v: v.patch_embed.proj.weight, vit, patches)
    names = {"norm": "layernorm", "head": "classifier"}
    for i in range(c.num_hidden_layers):
        at, block = f"layers.{i}.", f"blocks.0.blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [held[f"{at}attention.{x}_proj.{kind}"] for x in "qkv"]
            held[f"{at}qkv.{kind}"] = jnp.concatenate(parts)
        names |= {f"{block}attn.qkv": f"{at}qkv", f"{block}attn.proj": f"{at}attention.o_proj"}
        names |= {f"{block}prenorm": f"{at}layernorm_before", f"{block}norm": f"{at}layernorm_after"}
        names |= {f"{block}mlp.{fc}": f"{at}mlp.{fc}" for fc in ("fc1", "fc2")}
    for mine, theirs in names.items():
        for kind in ("weight", "bias"):
            vit = eqx.tree_at(lambda v, p=f"{mine}.{kind}": _at(v, p), vit, held[f"{theirs}.{kind}"])

    def equimo(images: Any) -> Any:
        return jax.vmap(lambda image: vit(image, inference=True))(images)

    return equimo


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[int(key)] if key.isdigit() else getattr(tree, key)
    return tree


_LLAMA = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
# penzai's last norm keeps its own eps whatever the configuration says.
_NEOX = {**_SIZES, "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_NEOX |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
_GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
_GEMMA = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
_FALCON = {"vocab_size": 60, "hidden_size": 32, "ffn_hidden_size": 64, **_LAYERS, "alibi": True, "bias": True}
_FALCON |= {"multi_query": False, "parallel_attn": False, "new_decoder_architecture": False}
_VIT = {**_SIZES, "image_size": 16, "patch_size": 4, "num_labels": 5, "layer_norm_eps": 1e-6}
del _VIT["vocab_size"]

PAIRS = (
    Pair(
        "LLaMA, penzai",
        "LlamaForCausalLM",
        _LLAMA,
        _penzai("llama", "llama_from_huggingface_model", _llama_names),
        IDS,
    ),
    Pair(
        "GPT-NeoX, penzai",
        "GPTNeoXForCausalLM",
        _NEOX,
        _penzai("gpt_neox", "gpt_neox_from_huggingface_model", _neox_names, ("lm_head", "embed_out")),
        IDS,
    ),
    Pair("GPT-2, KerasHub", "GPT2Model", _GPT2, _keras("convert_gpt2"), IDS),
    Pair("Gemma, KerasHub", "GemmaModel", _GEMMA, _keras("convert_gemma", "model."), IDS),
    Pair("Falcon, KerasHub", "FalconModel", _FALCON, _falcon, IDS),
    Pair("ViT, equimo", "ViTForImageClassification", _VIT, _vit, IMAGES),
)
