"""The commands that describe a model, and bring one in and out: `info`, `import`, `export`. A thin layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.export import Format
from palm.checkpoint.export import export as write_export
from palm.checkpoint.hub import PREFIX, fetch, fetch_exported, is_exported
from palm.checkpoint.locate import BEST, LAST
from palm.checkpoint.programs import KINDS, read_about
from palm.checkpoint.progress import summarise
from palm.checkpoint.push import push_to_hub
from palm.checkpoint.transformers import read_folder
from palm.cli.display import Terminal
from palm.cli.flags import Architecture, Optional, Request, default
from palm.config import BACKENDS, Backend, PaLMConfig
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import ConfigError
from palm.files.names import visible
from palm.memory import in_units
from palm.presets import PRESETS
from palm.presets import preset as find_preset
from palm.spec.rounding import RATIO_BAR
from palm.spec.sizes import describe
from palm.training.run_folder import Run
from palm.training.summary import RunSummary
from palm.training.summary import summarise as summarise_run
from palm.upstream.read import read_upstream
from palm.upstream.rlhf import RLHF, NormScale


@dataclass(frozen=True, kw_only=True)
class InfoRequest:
    """What `palm info` is asked for."""

    model: Positional[Annotated[str, arg(metavar="[MODEL]")]] = "small"
    """A run, a checkpoint, or a preset: tiny, small, palm-8b, palm-62b, palm-540b, palm_jax.palm, …"""
    architecture: Architecture = None
    """The original that a preset follows where it leaves the architecture open."""
    length: int = 2048
    """Sequence length for the FLOPs of attention."""


def info(request: Request[InfoRequest]) -> int:
    """Describe a preset, a run or a checkpoint: config, parameters by kind, FLOPs per token and memory.

    Of a run it also shows how far it is, its losses and its checkpoints.
    """
    if request.model in PRESETS or not _is_path(request.model):
        told, config = _preset(request.model, request.architecture or "torch")
    else:
        told, config = _read(Path(request.model), request.architecture)
    sizes = describe(config, request.length)
    amounts = {
        f"forward FLOPs per token at {request.length}": f"{sizes.forward_flops:.4g}",
        "training FLOPs per token": f"{sizes.training_flops:.4g}",
        **{f"weights in {dtype}": in_units(size) for dtype, size in sizes.weight_bytes.items()},
        "training state, float32, two moments": in_units(sizes.training_bytes),
        "KV cache of one position, bfloat16": in_units(sizes.cache_bytes),
    }
    counts = {**sizes.parameters, "parameters": sizes.total}
    sections = [told, config.to_dict(), {kind: f"{count:,}" for kind, count in counts.items()}, amounts]
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for i, section in enumerate(filter(None, sections)):
        if i:
            table.add_row()
        for name, value in section.items():
            table.add_row(name, Text(visible(str(value))))
    Terminal().print(table, highlight=False)
    return 0


def _preset(name: str, architecture: Backend) -> tuple[dict[str, Any], PaLMConfig]:
    """The config of a preset as the original of `architecture`, and a line about that if it matters."""
    try:
        config = find_preset(name)
    except ConfigError as error:
        raise ConfigError(f"{error} There is no folder of that name either.") from None
    if config.is_resolved:
        return {}, config
    other = next(backend for backend in BACKENDS if backend != architecture)
    told = f"of {architecture}; it depends on the backend (--architecture {other})"
    return {"architecture": told}, config.resolve(architecture)


def _is_path(text: str) -> bool:
    return os.sep in text or os.path.lexists(text) or Path(text).name in (LAST, BEST)


def _read(given: Path, architecture: Backend | None) -> tuple[dict[str, Any], PaLMConfig]:
    """How far the training of a checkpoint is, and its config; its weights are not read."""
    if architecture is not None:
        raise ConfigError(
            "--architecture must not be given with a checkpoint, which has its own architecture; "
            f"got {given}. Leave it out."
        )
    found = summarise(given)
    told: dict[str, Any] = {"checkpoint": found.path, "dtype": found.dtype, **found.origin}
    folder = found.path.resolve().parent
    if found.fields is not None and Run(folder).is_run:
        told |= _progress(summarise_run(folder), found.fields)
    return told, found.config


def _progress(run: RunSummary, training: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run was at the checkpoint, and where it is now."""
    told = {"step": f"{training['step']} of {run.recipe.steps}"}
    if training["step"] in run.val_losses:
        told["validation loss"] = f"{run.val_losses[training['step']]:.4f} nats"
    if run.first is not None and run.last is not None:
        losses = f"{run.first['loss']:.4f} → {run.last['loss']:.4f} nats"
        told["training loss, first → last step"] = f"{losses}, {run.first['step']} → {run.last['step']}"
    return told | {
        "tokens": f"{run.tokens:,}",
        "checkpoints": ", ".join(
            f"{step} (best)" if step == run.best else str(step) for step in run.checkpoints
        ),
        "optimizer": run.recipe.optimizer,
        "trained in": training.get("backend", run.backend),
        "data": run.data or "an array",
        "tokenizer": run.tokenizer or "token ids; the run has no tokenizer",
    }


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
    save_arrays(config, arrays, out, tokenizer=tokenizer, origin=origin or None)
    count = sum(array.size for array in arrays.values())
    # Read from the shapes alone: the one thing for a user to check.
    sizes = ", ".join(f"{name} {getattr(config, name)}" for name in ("depth", "dim", "heads", "dim_head"))
    from_hub = [f"from {origin['repository']} at {origin['revision']}"] if origin else []
    for line in (f"{out}: {source}, {count:,} parameters, {sizes}", *from_hub, *told):
        Terminal().print(visible(line), highlight=False, markup=False)
    return 0


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
