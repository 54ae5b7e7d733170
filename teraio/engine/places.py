"""Places of a program by number (native) and by name (records): modules, phases, anchors.

In: module names as models are offloaded. Out: ids and names. Must not know: torch.
"""

from __future__ import annotations

from typing import get_args

from teraio.records import Phase

NO_MODULE = 0xFFFFFFFF
# In the order of the native enums Phase and AnchorKind.
_PHASES: tuple[Phase, ...] = get_args(Phase)
_ANCHORS = ("forward", "backward", "no_grad", "recompute", "optimizer")


class Places:
    """Numbers modules as they are named; the numbers stay for the life of the object."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._ids: dict[str, int] = {"": NO_MODULE}

    def add_module(self, name: str) -> int:
        """The id of the module called ``name``."""
        if name not in self._ids:
            self._ids[name] = len(self._names)
            self._names.append(name)
        return self._ids[name]

    def module_id(self, name: str) -> int:
        """The id of a module of a trace; NO_MODULE for one that this process doesn't have."""
        return self._ids.get(name, NO_MODULE)

    def module_name(self, module_id: int) -> str:
        """The name of a module; empty for NO_MODULE."""
        return "" if module_id == NO_MODULE else self._names[module_id]

    def phase(self, phase_id: int) -> Phase:
        """The name of a phase."""
        return _PHASES[phase_id]

    def phase_id(self, phase: Phase) -> int:
        """The native number of a phase."""
        return _PHASES.index(phase)

    def anchor_name(self, key: int) -> str:
        """Text such as ``forward:model.layers.3`` for a native anchor key."""
        kind = _ANCHORS[key >> 32]
        return f"{kind}:{'' if kind == 'optimizer' else self.module_name(key & NO_MODULE)}"

    def anchor_key(self, name: str) -> int:
        """The native key for the text of an anchor."""
        kind, _, module = name.partition(":")
        return (_ANCHORS.index(kind) << 32) | (0 if kind == "optimizer" else self.module_id(module))
