"""The folder of a run as the processes see it that are not the first: they read it, and write nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from palm.checkpoint.manifest import METRICS
from palm.checkpoint.progress import Progress
from palm.config import PaLMConfig
from palm.data.tokenizer_file import FileTokenizer
from palm.training.run_folder import Run


class Follower(Run):
    """A `Run` of which each method that would write does nothing: the first process does it."""

    @contextmanager
    def locked(self, *, new: bool = False) -> Iterator[None]:
        """The first process has the lock."""
        yield

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Nothing."""

    def keep_tokenizer(self, tokenizer: FileTokenizer | None) -> None:
        """Nothing."""

    def save(
        self,
        step: int,
        config: PaLMConfig,
        arrays: Mapping[str, np.ndarray],
        progress: Progress,
        tokenizer: FileTokenizer | None,
    ) -> None:
        """Nothing."""

    def prune(self, keep: int, *, since: int | None = None) -> None:
        """Nothing."""

    def delete(self, step: int) -> None:
        """Nothing."""

    def log(self, entry: Mapping[str, Any], file: str = METRICS) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def cut(self, step: int) -> None:
        """Nothing."""
