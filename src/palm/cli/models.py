"""The commands that bring a model in and out: `palm import`, `palm export`. A thin layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.export import Format
from palm.checkpoint.export import export as write_export
from palm.checkpoint.hub import PREFIX, fetch, fetch_exported, is_exported
from palm.checkpoint.programs import KINDS, read_about
from palm.checkpoint.push import push_to_hub
from palm.checkpoint.tokenizer import kept_file
from palm.checkpoint.transformers import read_folder
from palm.cli.display import Terminal
from palm.cli.flags import Optional, Request, default
from palm.config import PaLMConfig
from palm.data.tokenizer import load_tokenizer, vocabulary_size
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import ConfigError
from palm.files.names import visible
from palm.spec.rounding import RATIO_BAR
from palm.upstream.read import read_upstream
from palm.upstream.rlhf import RLHF, NormScale


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What `palm import` is asked for."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """palm_pytorch.palm_lite, palm_pytorch.palm_pytorch, palm_jax.palm, palm_jax.palm_lite,
    palm_rlhf_pytorch, or transformers. Without it, of a repository on the hub: transformers if palm push
    wrote it, else palm_rlhf_pytorch, of which the public weights are."""
    file: Positional[Annotated[str, arg(metavar="FILE")]]
    """Its weights: .pt, .pth, .safetensors, .eqx (Equinox) or .npz; or a file of the Hugging Face hub,
    hub:OWNER/NAME or hub:OWNER/NAME/FILE. Of transformers, a folder that palm export wrote, or a repository
    that palm push wrote, hub:OWNER/NAME."""
    out: Positional[Annotated[Path | None, arg(metavar="OUT")]] = None
    """Checkpoint directory to write. It must not exist."""
    norm_scale: NormScale | None = None
    """Of palm_rlhf_pytorch: whether norms multiply by gamma (plain, before 0.2.4) or by gamma + 1 (plus-one).
    Left out, the values decide."""
    tokenizer: Annotated[Path | None, default("that of a folder or a repository for transformers")] = None
    """A Hugging Face tokenizer.json or a SentencePiece .model to keep in the checkpoint."""
    revision: str | None = None
    """Commit, branch or tag of the repository on the hub. Left out, the newest."""


def import_(request: Request[ImportRequest]) -> int:
    """Turn weights of an original model, or a folder for transformers, into a palm checkpoint.

    palm import SOURCE FILE OUT, or palm import hub:OWNER/NAME OUT.
    """
    source, file, out = request.source, request.file, request.out
    if source.startswith(PREFIX) and out is None:
        known = is_exported(source, request.revision)
        source, file, out = "transformers" if known else RLHF, source, Path(file)
    if out is None:
        raise ConfigError("OUT must be given; got none. Write palm import SOURCE FILE OUT.")
    told: list[str] = []
    config, arrays, tokenizer, origin = _imported(source, file, request, told.append)
    if request.tokenizer is not None:
        tokenizer = _tokenizer(request.tokenizer, config)
    save_arrays(config, arrays, out, tokenizer=tokenizer, origin=origin or None)
    count = sum(array.size for array in arrays.values())
    # Read from the shapes alone: the one thing for a user to check.
    sizes = ", ".join(f"{name} {getattr(config, name)}" for name in ("depth", "dim", "heads", "dim_head"))
    from_hub = [f"from {origin['repository']} at {origin['revision']}"] if origin else []
    for line in (f"{out}: {source}, {count:,} parameters, {sizes}", *from_hub, *told):
        Terminal().print(visible(line), highlight=False, markup=False)
    return 0


def _tokenizer(file: Path, config: PaLMConfig) -> FileTokenizer | None:
    """A tokenizer for the model. Raises `ConfigError` if it has ids that the model lacks."""
    found = load_tokenizer(file)
    vocabulary_size(found, config.num_tokens)
    return kept_file(found)


def _imported(
    source: str, file: str, request: ImportRequest, tell: Callable[[str], None]
) -> tuple[PaLMConfig, dict[str, np.ndarray], FileTokenizer | None, dict[str, str]]:
    """The config, the weights and the tokenizer that are imported, and where they come from on the hub."""
    is_hub, revision = file.startswith(PREFIX), request.revision
    if revision is not None and not is_hub:
        raise ConfigError(
            f"--revision must be left out but with hub:OWNER/NAME; got file={file!r}. Leave it out."
        )
    if source == "transformers":
        if request.norm_scale is not None:
            raise ConfigError(
                f"--norm-scale must be left out but of {RLHF}; got norm_scale={request.norm_scale}. "
                "Leave it out."
            )
        exported, origin = (
            fetch_exported(file.removeprefix(PREFIX), revision) if is_hub else (read_folder(Path(file)), {})
        )
        return *exported, origin
    path, origin = Path(file), {}
    if is_hub:
        found = fetch(file, revision)
        path = found.path
        origin = {
            "source": source,
            "repository": found.repository,
            "revision": found.revision,
            "sha256": found.sha256,
            "file": path.name,
        }
    return *read_upstream(path, source, norm_scale=request.norm_scale, tell=tell), None, origin


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `palm export` is asked for."""

    model: Positional[Annotated[Path, arg(metavar="MODEL")]]
    """A run, which means its newest checkpoint, or a checkpoint."""
    out: Path
    """Folder to write. It must not exist."""
    format: Format = "safetensors"
    """safetensors: the weights under palm's names. transformers: a folder that Hugging Face's
    AutoModelForCausalLM loads with trust_remote_code=True, and a model card. Above 5 GB there are several
    files, and an index. torch-export, stablehlo: the forward pass and a decoding step as programs of
    torch.export or of jax.export, which run without palm."""
    length: Annotated[int | None, default("2048")] = None
    """Of programs: the most positions of a sequence."""
    license: Annotated[str | None, Optional] = None
    """Name of a license for the model card: mit, apache-2.0, …"""


def export(request: Request[ExportRequest]) -> int:
    """Write the weights of a checkpoint for other tools, or for transformers, or the model as programs."""
    write_export(
        request.model, request.out, format=request.format, length=request.length, license=request.license
    )
    told = [str(file) for file in sorted(request.out.iterdir())]
    if request.format in KINDS:
        found = read_about(request.out)["agreement"]
        rest = ", the others as likely, to rounding" if found["same"] < found["tokens"] else ""
        told.append(
            "read back, the logits differ from the model's by rounding: ratio "
            f"{found['forward']:.2f} (forward) and {found['decode']:.2f} (decode), of at most {RATIO_BAR}; "
            f"{found['same']} of {found['tokens']} greedy tokens are the same{rest}"
        )
    Terminal().print("\n".join(told), highlight=False, markup=False)
    return 0


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What `palm push` is asked for."""

    model: Positional[Annotated[Path, arg(metavar="MODEL")]]
    """A run, which means its newest checkpoint, or a checkpoint."""
    repository: Positional[Annotated[str, arg(metavar="OWNER/NAME")]]
    """Repository on the Hugging Face hub. It is made if there is none."""
    private: bool = False
    """Make the new repository private."""
    revision: Annotated[str | None, default("main")] = None
    """Branch to upload to. It is made if there is none."""
    message: Annotated[str | None, Optional] = None
    """Message of the commit."""
    license: Annotated[str | None, Optional] = None
    """Name of a license for the model card: mit, apache-2.0, …"""


def push(request: Request[PushRequest]) -> int:
    """Upload a checkpoint to the Hugging Face hub, in the format of transformers.

    HF_TOKEN, or hf auth login, says who uploads.
    """
    done = push_to_hub(
        request.model,
        request.repository,
        private=request.private or None,
        revision=request.revision,
        message=request.message,
        license=request.license,
    )
    for line in (done.url, f"commit {done.commit}"):
        Terminal().print(visible(line), highlight=False, markup=False, soft_wrap=True)
    return 0
