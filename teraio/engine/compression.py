"""Which storages are encoded on their way to the SSDs, and by which codec.

In: what the user passed as ``compress``. Out: the codec of each storage of a trace. Must not know:
how a codec works, the native core.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from teraio.errors import ConfigurationError
from teraio.kernels import CODECS
from teraio.records import Kind, Storage

RAW = "raw"
LOSSLESS = "lossless"
KINDS: tuple[str, ...] = get_args(Kind)
# Of all kinds only these have a second name, that of the optimizer for them: "exp_avg".
_NAMED = "optimizer_state"
# For values that are never negative: others would become NaN.
_UNSIGNED = "ufp8"
_EXAMPLE = '{"optimizer_state:exp_avg": "fp8", "activation": "bf16"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """``by_kind``: codecs by kind of storage, or by state of the optimizer.

    ``default`` is for storages of all other kinds, and for those whose kind is not known yet.
    """

    by_kind: tuple[tuple[str, str], ...]
    default: str

    def codec_of(self, storage: Storage) -> str:
        """The codec that is wanted for a storage; one of ``CODECS``."""
        codecs = dict(self.by_kind)
        if storage.kind == _NAMED:
            state = storage.name.rpartition(":")[2]
            named = codecs.get(f"{_NAMED}:{state}")
            if named is not None:
                return named
        return codecs.get(storage.kind, self.default)

    def missing(self, storages: Iterable[Storage]) -> tuple[list[str], list[str]]:
        """The named states that none of ``storages`` is, and all states that some of them are."""
        named = [kind for kind, _ in self.by_kind if kind.startswith(f"{_NAMED}:")]
        states = {s.name.rpartition(":")[2] for s in storages if s.kind == _NAMED}
        there = sorted(f"{_NAMED}:{state}" for state in states)
        return [state for state in named if state not in there], there

    @property
    def codecs(self) -> tuple[str, ...]:
        """Those that may be used, without "raw"."""
        wanted = {self.default, *(codec for _, codec in self.by_kind)} - {RAW}
        return tuple(sorted(wanted))


def compression(compress: str | Mapping[str, str] | None) -> Compression | None:
    """What ``offload(compress=...)`` asks for; None where nothing is to be encoded.

    Raises ConfigurationError for kinds and codecs that there are not, and for codecs that would
    make NaN of what they are for.
    """
    if compress is None:
        return None
    if isinstance(compress, str):
        if compress != LOSSLESS:
            raise ConfigurationError(
                f"compress={compress!r}: a single name can only be {LOSSLESS!r}, which changes no "
                f"bit; pass lossy codecs for the storages that they are for, such as {_EXAMPLE}."
            )
        return Compression(by_kind=(), default=LOSSLESS)
    if not isinstance(compress, Mapping):
        raise ConfigurationError(
            f"compress={compress!r} is no codec; pass {LOSSLESS!r}, or codecs by kind of storage, "
            f"such as {_EXAMPLE}."
        )
    for kind, codec in compress.items():
        _check(kind, codec)
    found = Compression(by_kind=tuple(compress.items()), default=RAW)
    return found if found.codecs else None


def _check(kind: object, codec: object) -> None:
    base, separator, state = str(kind).partition(":")
    if base not in KINDS or (separator and (base != _NAMED or not state)):
        raise ConfigurationError(
            f"compress: {kind!r} is no kind of storage; there are {', '.join(KINDS)}, and states "
            f"by name, such as {_NAMED}:exp_avg."
        )
    if codec not in CODECS:
        raise ConfigurationError(
            f"compress[{kind!r}]: codec {codec!r} is unknown; there are {', '.join(CODECS)}."
        )
    if codec == _UNSIGNED and not separator:
        raise ConfigurationError(
            f"compress[{kind!r}]: {_UNSIGNED!r} makes NaN of negative values; name a state that "
            f"has none, such as {_NAMED}:exp_avg_sq, or pass 'fp8'."
        )
