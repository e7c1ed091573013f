"""`python -m sparsevlm_jax.cli` is the command `sparsevlm`."""

import sys

from . import main

sys.exit(main())
