"""The bundled demo: a drawn world of street signs, questions about it, and a small LLaVA that reads them.

Its training stands in `examples/train_demo/` of the repository.
"""

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""The trained model, a Hugging Face folder."""
