"""Nothing here may use the network, and data sets are kept apart from the user's."""

from __future__ import annotations

import os
import tempfile

# These are read when the packages are imported.
_home = tempfile.TemporaryDirectory()
os.environ |= {"HF_HOME": _home.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
