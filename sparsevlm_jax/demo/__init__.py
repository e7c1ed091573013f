"""The bundled demo: a drawn world of street signs, and the small LLaVA, trained here, that reads them."""

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""The trained model, a Hugging Face folder."""
