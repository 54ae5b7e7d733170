"""Published model configurations by name, as data beside this file.

In: a name, a path or a mapping. Out: a configuration as in a ``config.json`` of Hugging Face. Must
not know: torch, transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from teraio.errors import ConfigurationError

Config = Mapping[str, Any]

_FOLDER = files(__package__).joinpath("models")


def model_names() -> tuple[str, ...]:
    """The names that ``load_config`` knows."""
    return tuple(sorted(Path(entry.name).stem for entry in _FOLDER.iterdir()))


def load_config(config: Config | str | os.PathLike[str]) -> Config:
    """The configuration that a name of ``model_names()``, a path or a mapping stands for.

    Raises ConfigurationError where there is none.
    """
    if isinstance(config, Mapping):
        return config
    name = os.fspath(config)
    if name in model_names():
        text = _FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8")
    else:
        text = _read(Path(name))
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} is not JSON: {error}.") from None
    if not isinstance(loaded, dict):
        raise ConfigurationError(f"{name} holds no JSON object, so it is no model configuration.")
    return loaded


def _read(path: Path) -> str:
    path = path / "config.json" if path.is_dir() else path
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"there is no model configuration {path} ({error.strerror}); pass a config.json or one "
            f"of {', '.join(model_names())}."
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{path} is no text, so it is no model configuration; pass a config.json."
        ) from None
