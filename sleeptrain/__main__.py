"""`python -m sleeptrain` is `sleeptrain`."""

import sys

from sleeptrain.cli.main import main

sys.exit(main())
