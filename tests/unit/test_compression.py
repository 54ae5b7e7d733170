"""What ``offload(compress=...)`` may be, and which codec it means for which storage.

In: arguments of users, storages of a trace. Out: names of codecs, or one clear error.
"""

from __future__ import annotations

from typing import Any

import pytest

import teraio
from teraio.engine.compression import KINDS, compression
from teraio.kernels import CODECS
from teraio.records import Kind, Storage


def storage(kind: Kind, name: str = "layer.weight") -> Storage:
    return Storage(
        nbytes=1 << 20, kind=kind, name=name, birth=None, death=None, uses=(0,), writes=()
    )


def test_without_it_nothing_is_encoded() -> None:
    assert compression(None) is None
    assert compression({}) is None
    assert compression({"parameter": "raw"}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_lossless_alone_is_for_storages_of_every_kind(kind: Kind) -> None:
    found = compression("lossless")
    assert found is not None
    assert found.codec_of(storage(kind)) == "lossless"
    assert found.default == "lossless"


def test_a_mapping_is_for_the_kinds_that_it_names_and_no_others() -> None:
    found = compression({"parameter": "lossless", "activation": "bf16"})
    assert found is not None
    codecs = {kind: found.codec_of(storage(kind)) for kind in ("parameter", "activation", "buffer")}
    assert codecs == {"parameter": "lossless", "activation": "bf16", "buffer": "raw"}
    assert found.default == "raw"
    assert found.codecs == ("bf16", "lossless")


def test_a_state_may_have_a_codec_of_its_own() -> None:
    found = compression({"optimizer_state": "fp8", "optimizer_state:exp_avg_sq": "ufp8"})
    assert found is not None
    assert found.codec_of(storage("optimizer_state", "a.weight:exp_avg")) == "fp8"
    assert found.codec_of(storage("optimizer_state", "a.weight:exp_avg_sq")) == "ufp8"
    assert found.codec_of(storage("gradient", "a.weight:exp_avg_sq")) == "raw"


def test_states_that_no_storage_is_are_told_with_those_that_there_are() -> None:
    found = compression(
        {"optimizer_state:exp_avg": "fp8", "optimizer_state:nope": "bf16", "activation": "bf16"}
    )
    assert found is not None
    storages = [
        storage("optimizer_state", f"{layer}.weight:{state}")
        for layer in "ab"
        for state in ("exp_avg_sq", "exp_avg")
    ]
    there = ["optimizer_state:exp_avg", "optimizer_state:exp_avg_sq"]
    assert found.missing([*storages, storage("activation")]) == (["optimizer_state:nope"], there)
    assert found.missing([]) == (["optimizer_state:exp_avg", "optimizer_state:nope"], [])


@pytest.mark.parametrize(
    ("compress", "words"),
    [
        ("int8", "'int8': a single name can only be 'lossless'"),
        (8, "8 is no codec"),
        (["lossless"], "is no codec"),
        ({"weights": "lossless"}, "'weights' is no kind of storage; there are parameter"),
        ({"parameter:exp_avg": "fp8"}, "'parameter:exp_avg' is no kind"),
        ({"optimizer_state:": "fp8"}, "is no kind"),
        ({1: "fp8"}, "1 is no kind"),
        ({"parameter": "zip"}, "codec 'zip' is unknown; there are raw, lossless"),
        ({"parameter": None}, "codec None is unknown"),
        ({"optimizer_state": "ufp8"}, "'ufp8' makes NaN of negative values"),
        ({"gradient": "ufp8"}, "'ufp8' makes NaN of negative values"),
    ],
)
def test_anything_else_is_one_error_that_says_what_there_is(compress: Any, words: str) -> None:
    with pytest.raises(teraio.ConfigurationError) as raised:
        compression(compress)
    assert words in str(raised.value)
    assert str(raised.value).startswith("compress")


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "ufp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_codec_but_ufp8_is_for_any_kind(kind: str, codec: str) -> None:
    found = compression({kind: codec})
    assert (found is None) == (codec == "raw")
