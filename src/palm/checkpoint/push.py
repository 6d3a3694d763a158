"""A checkpoint uploaded to the Hugging Face hub, in the format of transformers, as one commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import palm
from palm.checkpoint.card import check_license
from palm.checkpoint.export import export_card
from palm.checkpoint.hub import check_repository, client, reason
from palm.checkpoint.transformers import REPLACED
from palm.errors import PalmError, UpstreamError
from palm.files.temporary import temporary_folder

_HELP = {
    401: "Set HF_TOKEN to a token that is valid, or run hf auth login.",
    403: "Use a token that may write there, or a repository of your own.",
    404: "Check the name and the revision, and that the token may read them.",
    "OfflineModeIsEnabled": "Unset HF_HUB_OFFLINE.",
    "HFValidationError": "Choose another name.",
}


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub: its address, and its id."""

    url: str
    commit: str


def push_to_hub(
    path: str | os.PathLike[str],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> Pushed:
    """Upload a checkpoint, or a run's newest one, to the repository "OWNER/NAME" of the Hugging Face hub.

    What is uploaded is what `palm.export` writes for transformers, with the tokenizer and a model card. A new
    repository is made; `private` says whether it is. In one that exists, files of the same names are
    replaced, and the weights and the tokenizer of another model removed. `revision` is a branch, which is
    made if there is none; None: main. `message` is the commit's, `license` a name for the card. Returns the
    commit. `HF_TOKEN` or `hf auth login` says who uploads.

    Raises `MissingFrameworkError` without huggingface_hub, `CheckpointError` for a damaged checkpoint,
    `ConfigError` for a license that is no name, and `UpstreamError` for a name that is none, without a token,
    without a network, where the token may not write, and for a public repository that should be private.
    """
    check_repository(repository)
    check_license(license)
    hub = client()
    with _asking(repository):
        if hub.get_token() is None:
            raise UpstreamError(
                "token must be there to upload; got none. Set HF_TOKEN, or run hf auth login."
            )
    with temporary_folder("push") as parent:
        # What is no checkpoint, or a damaged one, makes no repository: all of it is read first.
        folder = export_card(path, parent / "model", repository, license)
        with _asking(repository):
            api = hub.HfApi(library_name="palm-dual", library_version=palm.__version__)
            _prepare(api, repository, private, revision)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"Upload a model by palm {palm.__version__}",
                delete_patterns=[*REPLACED],
            )
    return Pushed(str(done.commit_url), str(done.oid))


def _prepare(api: Any, repository: str, private: bool | None, revision: str | None) -> None:
    """Make the repository and the branch, if there are none."""
    api.create_repo(repository, private=private, exist_ok=True)
    if private and not api.repo_info(repository).private:
        raise UpstreamError(
            f"repository must be private; got {repository}, which is public already. Change that on its "
            "page, or leave private out."
        )
    if revision is not None and not api.revision_exists(repository, revision):
        api.create_branch(repository, branch=revision)


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Turn what the hub and the network raise into an `UpstreamError` that says what to do."""
    try:
        yield
    except PalmError:
        raise
    except Exception as raised:
        # What goes wrong with one file comes wrapped.
        error = raised.__cause__ if isinstance(raised, RuntimeError) and raised.__cause__ else raised
        status = getattr(getattr(error, "response", None), "status_code", None)
        told = _HELP.get(status) or _HELP.get(type(error).__name__) or "Check the network, and try again."
        raise UpstreamError(f"hub:{repository} must take the model; got {reason(error)} {told}") from None
