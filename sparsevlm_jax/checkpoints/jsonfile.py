"""Reading the JSON files of a checkpoint folder: a table comes back, or one error that names the file."""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that must hold a table.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else than a table.
    """
    try:
        table = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{path} is not valid JSON: {where}: {error.msg}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not valid JSON: too deeply nested") from None
    except ValueError as error:  # bytes that are not UTF-8, or a number of thousands of digits
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} holds no table, but a {type(table).__name__}")
    return table


def optional_json(path: str | Path) -> dict[str, Any]:
    """As `read_json`, and an empty table where there is no such file."""
    return read_json(path) if Path(path).is_file() else {}
