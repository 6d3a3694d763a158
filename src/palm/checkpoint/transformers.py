"""A checkpoint as a folder that Hugging Face's transformers loads, and such a folder read back.

    OUT/config.json                the sizes under transformers' names, and palm's own config as `palm`
    OUT/model.safetensors          all weights, or several files and their index, as `palm.export` has them
    OUT/modeling_palm.py           the model in PyTorch, for `trust_remote_code=True`
    OUT/generation_config.json
    OUT/tokenizer.json, OUT/tokenizer_config.json      if the checkpoint has a tokenizer of that kind

The names of the weights are those of the torch wing, and matrices are (out, in), as `torch.nn.Linear` has
them: so that what works on modules by their names, such as LoRA, finds them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.manifest import CONFIG
from palm.config import DType, PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError, ConfigError, WeightsError
from palm.files.objects import MalformedError, parse_object
from palm.files.read import read_file, reading
from palm.files.schema import FILE_NAME, check
from palm.files.tensors import read_tensors
from palm.spec.parameters import check_array, check_names, parameters

INDEX = "model.safetensors.index.json"
MODELING = "modeling_palm.py"
TOKENIZER = "tokenizer.json"
_MOST_JSON = 1 << 26


def stored_name(name: str) -> str:
    """The name in the folder of the weight with the canonical name `name`."""
    return f"{name}.weight"


def is_turned(name: str, config: PaLMConfig) -> bool:
    """Whether the folder has the transpose of the canonical array: of each matrix but the embedding."""
    return len(parameters(config)[name].shape) == 2 and name != "embedding"


def about(config: PaLMConfig, dtype: DType, tokenizer: Tokenizer | None) -> dict[str, bytes]:
    """The files beside the weights."""
    code = files("palm.checkpoint").joinpath("modeling_palm.txt").read_bytes()
    found = {
        CONFIG: _json(_settings(config, dtype)),
        MODELING: code,
        "generation_config.json": _json({"use_cache": True}),
    }
    if isinstance(tokenizer, FileTokenizer) and tokenizer.file == TOKENIZER:
        found |= {
            TOKENIZER: tokenizer.content,
            "tokenizer_config.json": _json({"tokenizer_class": "PreTrainedTokenizerFast"}),
        }
    return found


def read_folder(path: Path) -> tuple[PaLMConfig, dict[str, np.ndarray]]:
    """The config and the weights, by canonical name, of a folder that `palm export` wrote for transformers.

    Raises `CheckpointError` if a file is missing or damaged, or the weights are not those of the config.
    """
    try:
        config = PaLMConfig.from_dict(_object(path / CONFIG).get("palm") or {})
        table = parameters(config)
        found = {name: tensor for file in _weight_files(path) for name, tensor in _tensors(file).items()}
        weights = {stored.removesuffix(".weight"): array for stored, array in found.items()}
        check_names(config, weights)
        for name, parameter in table.items():
            weights[name] = weights[name].T if is_turned(name, config) else weights[name]
            check_array(parameter, weights[name])
    except (OSError, MalformedError, ConfigError, WeightsError) as error:
        raise CheckpointError(
            f"{path} must be a folder that palm wrote for transformers; {error}. Export the model again."
        ) from None
    return config, {name: np.array(weights[name], order="C") for name in table}


def _weight_files(path: Path) -> list[Path]:
    if not (path / INDEX).exists():
        return [path / "model.safetensors"]
    named = _object(path / INDEX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise MalformedError(f"{INDEX} has no weight_map of names")
    for file in named.values():
        check(file, FILE_NAME)
    return [path / file for file in sorted({*named.values()})]


def _object(path: Path) -> dict[str, Any]:
    return parse_object(read_file(path, _MOST_JSON))


def _tensors(path: Path) -> dict[str, np.ndarray]:
    with reading(path) as reader:
        return read_tensors(reader)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _settings(config: PaLMConfig, dtype: DType) -> dict[str, Any]:
    return {
        "model_type": "palm_dual",
        "architectures": ["PalmDualForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_palm.PalmDualConfig",
            "AutoModelForCausalLM": "modeling_palm.PalmDualForCausalLM",
        },
        "vocab_size": config.num_tokens,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "head_dim": config.dim_head,
        "intermediate_size": config.ff_dim,
        "positions": config.positions,
        "norm": config.norm,
        "norm_eps": config.eps,
        "norm_eps_mode": config.norm_eps_mode,
        "rope_theta": config.rope_theta,
        "xpos_base": config.xpos_base,
        "qk_norm": config.qk_norm,
        "share_kv": config.share_kv,
        "logit_scale": config.logit_scale,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "dtype": dtype,
        "palm": config.to_dict(),
    }
