"""On which device a model is, or is to be.

In: a model, what the user asks for. Out: a torch.device. Must not know: runs, budgets.
"""

from __future__ import annotations

import torch

from teraio.engine.materialize import lacks_data
from teraio.errors import ConfigurationError


def device_of(model: torch.nn.Module) -> torch.device:
    """The one device of all parameters. Raises ConfigurationError where there are several."""
    return _only({parameter.device for parameter in model.parameters()})


def device_for(model: torch.nn.Module, wanted: str | torch.device | None) -> torch.device:
    """The device that the model is to be on: the one ``wanted``, else the one where it is.

    A model without data goes to the GPU if there is one. Raises ConfigurationError for a device
    that PyTorch doesn't have.
    """
    if wanted is None:
        devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
        if devices or not lacks_data(model):
            return _only(devices)
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=wanted).device  # with its number
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"device={str(wanted)!r} can't be used: {reason}") from None


def _only(devices: set[torch.device]) -> torch.device:
    if len(devices) > 1:
        raise ConfigurationError(
            f"the model is on {', '.join(sorted(map(str, devices)))}; teraio offloads from one "
            "device in a process. Move the model to it first, or name it as `device`."
        )
    return devices.pop() if devices else torch.device("cpu")
