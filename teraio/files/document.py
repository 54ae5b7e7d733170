"""The document that a file holds: a record as JSON values, with its kind and version, gzip'd.

In: JSON values, or the path of any file. Out: a file, or JSON values of a size and version that can
be read. Must not know: records.
"""

from __future__ import annotations

import gzip
import json
import os
import secrets
import zlib
from pathlib import Path
from typing import NoReturn

from teraio.files.fault import fail

VERSION = 5
_READABLE = range(1, VERSION + 1)
MAX_BYTES = 256 << 20
_MAX_BRACKETS = 4_000_000
_GZIP = zlib.MAX_WBITS | 16  # the format, for zlib
_PACKED = b"\x1f\x8b"  # so gzip begins
_LEVEL = 4
_BEGINNING = 64  # of a file: the format's name is in there


def pack(kind: str, body: object) -> bytes:
    """The content of a file. Raises ValueError for values that JSON does not have."""
    document = {"format": "teraio", "kind": kind, "version": VERSION, "record": body}
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), _LEVEL, mtime=0)


def replace(target: Path, data: bytes) -> None:
    """Writes a file, so that at any time ``target`` is either the old one or the whole new one."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(target)  # nobody knows of the draft
        raise


def is_ours(path: Path) -> bool:
    """Whether the file begins as ours do, or is empty. Raises OSError as the file system does."""
    with path.open("rb") as file:
        packed = file.read(_BEGINNING)
    try:
        return not packed or b'"teraio"' in zlib.decompressobj(_GZIP).decompress(packed, _BEGINNING)
    except zlib.error:
        return False


def read_document(path: Path) -> tuple[object, object]:
    """The kind and the record of a file, of which only the frame around them is checked.

    Raises Fault for anything but a file of teraio of a version that can be read.
    """
    document = _parse(_unpack(path))
    if not isinstance(document, dict) or document.get("format") != "teraio":
        fail("this is not a file of teraio")
    version = document.get("version")
    if type(version) is not int or version not in _READABLE:
        fail(
            f"the file has version {str(version)[:40]}; "
            f"versions {_READABLE[0]} to {_READABLE[-1]} can be read"
        )
    return document.get("kind"), document.get("record")


def _unpack(path: Path) -> bytes:
    """The file's content, unpacked up to the limit and no further."""
    with open(path, "rb") as file:
        packed = file.read(MAX_BYTES + 1)
    if len(packed) > MAX_BYTES:
        fail(f"the file is larger than {MAX_BYTES} bytes")
    if not packed.startswith(_PACKED):
        fail("this is not a gzip file, so not a file of teraio")
    unpacker = zlib.decompressobj(_GZIP)
    try:
        data = unpacker.decompress(packed, MAX_BYTES + 1)
    except zlib.error as error:
        fail(f"the file is damaged ({error})")
    if len(data) > MAX_BYTES:
        fail(f"the file unpacks to more than {MAX_BYTES} bytes")
    if not unpacker.eof:
        fail("the file is cut off")
    if unpacker.unused_data:
        fail("the file goes on after its end")
    return data


def _parse(data: bytes) -> object:
    if data.count(b"[") + data.count(b"{") > _MAX_BRACKETS:
        fail("the file holds more lists than a record can")
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        fail(f"the file holds no valid JSON ({type(error).__name__}: {str(error)[:80]})")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number here")
