"""A checkpoint as a folder that Hugging Face's transformers loads, and such a folder read back.

    OUT/config.json                the sizes under transformers' names, and palm's own config as `palm`
    OUT/model.safetensors          all weights, or several files and their index, as `palm.export` has them
    OUT/modeling_palm.py           the model in PyTorch, for `trust_remote_code=True`
    OUT/generation_config.json
    OUT/README.md                  the model card (palm.checkpoint.card)
    OUT/tokenizer.json, OUT/tokenizer_config.json      if the checkpoint has a tokenizer of that kind
    OUT/tokenizer.model                                if it has one of SentencePiece, which palm reads again

The names of the weights are those of the torch wing, and matrices are (out, in), as `torch.nn.Linear` has
them: so that what works on modules by their names, such as LoRA, finds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.checkpoint.manifest import CONFIG
from palm.config import DType, PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.data.tokenizer_file import FILES as TOKENIZERS
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError, ConfigError, WeightsError
from palm.files.objects import MalformedError, parse_object
from palm.files.read import Reader, reading
from palm.files.schema import FILE_NAME, PRINTABLE, ByName, check
from palm.files.tensors import read_tensors
from palm.spec.parameters import check_array, check_names, parameters

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MODELING = "modeling_palm.py"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# Patterns of names: what another model in the place of this one may lack, and what a model is read from.
REPLACED = (WEIGHTS, "model-?????-of-?????.safetensors", INDEX, *TOKENIZERS, TOKENIZER_CONFIG)
FILES = (CONFIG, *REPLACED)
MODEL_TYPE = "palm_dual"
_MOST_JSON, _MOST_TOKENIZER = 1 << 26, 1 << 30
Opened = Callable[[Path], AbstractContextManager[Reader]]


class Exported(NamedTuple):
    """A model as such a folder holds it: `arrays` by canonical name; None: it has no tokenizer."""

    config: PaLMConfig
    arrays: dict[str, np.ndarray]
    tokenizer: FileTokenizer | None


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
    if isinstance(tokenizer, FileTokenizer):
        found[tokenizer.file] = tokenizer.content
        if tokenizer.file == TOKENIZER:
            found[TOKENIZER_CONFIG] = _json({"tokenizer_class": "PreTrainedTokenizerFast"})
    return found


def read_folder(path: Path, *, told: str | None = None, opened: Opened = reading) -> Exported:
    """The model in a folder that `palm export` wrote for transformers.

    `told` is what the folder is called in messages, `opened` opens each of its files to be read once. Raises
    `CheckpointError` if a file is missing or damaged, or the weights are not those of the config.
    """
    try:
        config = _config(path, opened)
        weights = {stored.removesuffix(".weight"): array for stored, array in _tensors(path, opened).items()}
        if config.depth > len(weights):  # before a table is made of so many blocks
            raise MalformedError(f"it must hold {config.depth} blocks; got {len(weights)} tensors")
        table = parameters(config)
        check_names(config, weights)
        for name, parameter in table.items():
            weights[name] = weights[name].T if is_turned(name, config) else weights[name]
            check_array(parameter, weights[name])
        tokenizer = _tokenizer(path, opened)
    except (OSError, MalformedError, ConfigError, WeightsError) as error:
        raise CheckpointError(
            f"{told or path} must be a folder that palm wrote for transformers; {error}. "
            "Export the model again."
        ) from None
    return Exported(config, {name: np.array(weights[name], order="C") for name in table}, tokenizer)


def _config(path: Path, opened: Opened) -> PaLMConfig:
    settings = _object(path / CONFIG, opened)
    if settings.get("model_type") != MODEL_TYPE:
        got = settings.get("model_type")
        raise MalformedError(f"{CONFIG} must have model_type={MODEL_TYPE!r}; got model_type={got!r:.80}")
    return PaLMConfig.from_dict(settings.get("palm") or {})


def _tensors(path: Path, opened: Opened) -> dict[str, np.ndarray]:
    """The tensors of all files. Raises `MalformedError` unless an index lists just those of each file."""
    if not (path / INDEX).exists():
        with opened(path / WEIGHTS) as reader:
            return read_tensors(reader)
    listed: Any = _object(path / INDEX, opened).get("weight_map")
    check(listed, ByName(PRINTABLE, FILE_NAME))
    found: dict[str, np.ndarray] = {}
    for file in sorted({*listed.values()}):
        with opened(path / file) as reader:
            tensors = read_tensors(reader)
            own = {name for name, where in listed.items() if where == file}
            if own != tensors.keys():
                name = min(own ^ tensors.keys())
                raise MalformedError(f"{file} must hold the tensors that {INDEX} lists; {name} does not fit")
            found |= tensors
    return found


def _tokenizer(path: Path, opened: Opened) -> FileTokenizer | None:
    for name in TOKENIZERS:
        if (path / name).exists():
            return FileTokenizer(path / name, _content(path / name, _MOST_TOKENIZER, opened))
    return None


def _object(path: Path, opened: Opened) -> dict[str, Any]:
    return parse_object(_content(path, _MOST_JSON, opened))


def _content(path: Path, most: int, opened: Opened) -> bytes:
    with opened(path) as reader:
        if reader.size > most:
            raise MalformedError(f"{path.name} must have at most {most:,} bytes; got {reader.size:,}")
        return reader.read(reader.size)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _settings(config: PaLMConfig, dtype: DType) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
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
