"""`python -m sparsevlm_jax` is the command `sparsevlm`."""

import sys

from .cli import main

sys.exit(main())
