"""A run's folder, without a framework."""

import pytest
from run_settings import CONTENT

from palm.training.run_folder import Run


@pytest.fixture
def run(tmp_path):
    """A run with settings."""
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.write_settings(CONTENT)
    return run
