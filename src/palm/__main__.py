"""`python -m palm` is the `palm` command."""

import sys

from palm.cli.main import main

sys.exit(main())
