"""Random small traces and hardware for hypothesis.

In: nothing. Out: strategies. Must not know: the planner.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from teraio.records import Encoding, Hardware, Op, Storage, Tier, Trace


@st.composite
def storages(draw: Any, n: int, index: int) -> list[Storage]:
    """One storage, or the two halves of one that is carried into the next iteration."""
    nbytes = draw(st.sampled_from([0, 1, 100, 4096, 65536, 65537, 300_000, 1 << 20]))
    shape = draw(st.sampled_from(["persistent", "activation", "activation", "carried", "early"]))
    birth: int | None = None
    death: int | None = None
    if shape in ("activation", "carried"):
        birth = draw(st.integers(0, n - 1))
    if shape == "activation":
        death = draw(st.integers(birth, n - 1))
    if shape == "early":
        death = draw(st.integers(-1, n - 1))
    first, last = birth or 0, n - 1 if death is None else death
    uses = draw(st.sets(st.integers(first, last), max_size=5)) if last >= first else set()
    if birth is not None and draw(st.booleans()):
        uses.add(birth)
    writes = draw(st.sets(st.sampled_from(sorted(uses)))) if uses else set()
    repeatable = shape == "activation" and draw(st.booleans())
    if repeatable:
        uses.add(first)
        writes = {first}
    name = f"s{index}"
    made = Storage(
        nbytes=nbytes,
        kind=draw(st.sampled_from(["parameter", "gradient"])),
        name=name,
        birth=birth,
        death=death,
        uses=tuple(sorted(uses)),
        writes=tuple(sorted(writes)),
        repeatable=repeatable,
    )
    if shape != "carried":
        return [made]
    end = draw(st.integers(-1, n - 1))
    used = sorted(draw(st.sets(st.integers(0, end), max_size=3))) if end >= 0 else []
    twin = Storage(
        nbytes=nbytes,
        kind=made.kind,
        name=name,
        birth=None,
        death=end,
        uses=tuple(used),
        writes=tuple(op for op in used if draw(st.booleans())),
    )
    return [made, twin]


@st.composite
def traces(draw: Any, most_ops: int = 24, most_storages: int = 10) -> Trace:
    """A trace of some ops and storages of all shapes."""
    n = draw(st.integers(1, most_ops))
    ops = tuple(
        Op(
            name=f"op{i}",
            module="m",
            phase=draw(st.sampled_from(["forward", "forward", "backward"])),
            duration_ns=draw(st.sampled_from([0, 1000, 50_000, 1_000_000])),
            workspace_bytes=draw(st.sampled_from([0, 0, 5000])),
        )
        for i in range(n)
    )
    count = draw(st.integers(0, most_storages))
    items = [s for i in range(count) for s in draw(storages(n, i))]
    known = draw(st.lists(encodings(), max_size=2))
    if known:
        some = st.sampled_from([None, *range(len(known))])
        items = [replace(storage, encoding=draw(some)) for storage in items]
    return Trace(
        device="cpu",
        ops=ops,
        storages=tuple(items),
        anchors=(),
        base_bytes=draw(st.sampled_from([0, 12345])),
        encodings=tuple(known),
    )


@st.composite
def encodings(draw: Any) -> Encoding:
    """A codec that gains much or little, and is faster or slower than tiers."""
    rate = st.sampled_from([5e7, 1e9, 1e11])
    return Encoding(
        codec="lossless",
        dtype="float32",
        share=draw(st.sampled_from([0.05, 0.7, 1.0])),
        encode_bytes_per_s=draw(rate),
        decode_bytes_per_s=draw(rate),
    )


@st.composite
def tiers(draw: Any, name: str, capacity_bytes: int = 1 << 40) -> Tier:
    """A tier that is fast or slow, with channels that disturb each other or not."""
    rate = st.sampled_from([1e8, 2.5e9, 1e10])
    read, write = draw(rate), draw(rate)
    return Tier(
        name=name,
        capacity_bytes=capacity_bytes,
        read_bytes_per_s=read,
        write_bytes_per_s=write,
        mixed_bytes_per_s=(read + write) * draw(st.sampled_from([0.3, 0.6, 1.0])),
        latency_s=draw(st.sampled_from([0.0, 1e-5])),
        encodes=draw(st.booleans()),
    )


@st.composite
def hardware(draw: Any, budget_bytes: int) -> Hardware:
    """One tier with all the room there is, and at times a small one before it."""
    found = [draw(tiers("ssd"))]
    if draw(st.booleans()):
        found.insert(0, draw(tiers("host", draw(st.sampled_from([0, 100_000, 2_000_000])))))
    return Hardware(name="random", budget_bytes=budget_bytes, tiers=tuple(found))
