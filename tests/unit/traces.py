"""Made-up traces for tests: a training iteration of a transformer, as a profiler would write it
down.

In: sizes of the model. Out: Traces and Hardware. Must not know: how plans are made.
"""

from __future__ import annotations

from dataclasses import replace

from teraio.records import Anchor, Encoding, Hardware, Kind, Op, Phase, Storage, Tier, Trace

MIB = 1 << 20
GIB = 1 << 30

SSD = Tier(
    name="ssd0",
    capacity_bytes=200 * GIB,
    read_bytes_per_s=2.4e9,
    write_bytes_per_s=4.5e9,
    mixed_bytes_per_s=3.5e9,
    latency_s=1e-4,
)
HOST = Tier(
    name="host",
    capacity_bytes=1 * GIB,
    read_bytes_per_s=20e9,
    write_bytes_per_s=20e9,
    mixed_bytes_per_s=30e9,
    latency_s=1e-5,
)


def hardware(budget_bytes: int, *tiers: Tier) -> Hardware:
    """Hardware with one SSD, or the tiers given."""
    return Hardware(name="test", budget_bytes=budget_bytes, tiers=tiers or (SSD,))


class _Item:
    """A storage under construction."""

    def __init__(self, nbytes: int, kind: Kind, name: str, birth: int | None) -> None:
        self.nbytes, self.kind, self.name = nbytes, kind, name
        self.birth, self.death = birth, None if birth is None else birth
        self.uses: list[int] = []
        self.writes: list[int] = []

    def done(self) -> Storage:
        return Storage(
            nbytes=self.nbytes,
            kind=self.kind,
            name=self.name,
            birth=self.birth,
            death=self.death,
            uses=tuple(self.uses),
            writes=tuple(self.writes),
        )


class Builder:
    """Collects ops and the storages they use."""

    def __init__(self) -> None:
        self.ops: list[tuple[str, str, Phase, float]] = []
        self.items: list[_Item] = []
        self.anchors: list[Anchor] = []

    def persistent(self, nbytes: int, kind: Kind, name: str) -> _Item:
        self.items.append(_Item(nbytes, kind, name, None))
        return self.items[-1]

    def op(
        self,
        name: str,
        module: str,
        phase: Phase,
        weight: float,
        reads: tuple[_Item, ...] = (),
        writes: tuple[_Item, ...] = (),
        makes: tuple[tuple[int, str], ...] = (),
        kind: Kind = "activation",
    ) -> tuple[_Item, ...]:
        """Append an op; returns the storages it makes. An activation dies after its last use."""
        index = len(self.ops)
        self.ops.append((name, module, phase, weight))
        made = tuple(_Item(nbytes, kind, label, index) for nbytes, label in makes)
        self.items.extend(made)
        for item in dict.fromkeys((*reads, *writes, *made)):
            item.uses.append(index)
            if item.birth is not None:
                item.death = index
        for item in dict.fromkeys((*writes, *made)):
            item.writes.append(index)
        return made

    def trace(self, ideal_s: float, base_bytes: int) -> Trace:
        """The finished trace, its durations scaled to ``ideal_s``."""
        scale = ideal_s * 1e9 / sum(weight for *_, weight in self.ops)
        ops = tuple(
            Op(name=name, module=module, phase=phase, duration_ns=round(weight * scale))
            for name, module, phase, weight in self.ops
        )
        return Trace(
            device="cpu",
            ops=ops,
            storages=tuple(item.done() for item in self.items),
            anchors=tuple(self.anchors),
            base_bytes=base_bytes,
        )


def transformer_trace(
    *,
    layers: int = 12,
    hidden: int = 768,
    ffn: int = 2048,
    vocab: int = 16000,
    tokens: int = 1536,
    ideal_s: float = 4.0,
    zero_grad: str = "start",
    frozen: bool = False,
) -> Trace:
    """One iteration of a Llama-like model in fp32 with AdamW, one op per parameter and step of it.

    ``zero_grad`` tells where gradients are freed: at the "start" of the next iteration or after its
    forward pass ("backward"). ``frozen``: the layers train nothing, only the head does.
    """
    b = Builder()
    width, tall = tokens * hidden * 4, tokens * ffn * 4
    flops = 2.0 * tokens
    shapes: list[tuple[str, int]] = [("embed", vocab * hidden)]
    for i in range(layers):
        parts = [(p, hidden * hidden) for p in ("q", "k", "v", "o")]
        parts += [(p, hidden * ffn) for p in ("gate", "up", "down")]
        parts += [("norm1", hidden), ("norm2", hidden)]
        shapes += [(f"layers.{i}.{part}", count) for part, count in parts]
    shapes.append(("head", vocab * hidden))
    weights = {
        name: b.persistent(count * 4, "parameter", f"{name}.weight") for name, count in shapes
    }
    trained = [name for name, _ in shapes if not frozen or name == "head"]
    states = {
        name: tuple(
            b.persistent(weights[name].nbytes, "optimizer_state", f"{name}.{part}")
            for part in ("exp_avg", "exp_avg_sq")
        )
        for name in trained
    }
    twins = {}
    for name in trained:
        twins[name] = b.persistent(weights[name].nbytes, "gradient", f"{name}.grad")

    def near(nbytes: int) -> float:
        return nbytes * 16.0

    def linear(name: str, x: _Item, out: int) -> _Item:
        weight = flops * weights[name].nbytes / 4
        b.op("aten::t", name, "forward", 1e3)
        return b.op("aten::mm", name, "forward", weight, (x, weights[name]), (), ((out, name),))[0]

    def pointwise(op: str, name: str, reads: tuple[_Item, ...], out: int) -> _Item:
        return b.op(op, name, "forward", near(out), reads, (), ((out, f"{name}.{op}"),))[0]

    ids = b.op("aten::empty", "", "forward", 1e3, makes=((tokens * 8, "ids"),))[0]
    x = b.op(
        "aten::embedding", "embed", "forward", near(width), (ids, weights["embed"]), (),
        ((width, "embed"),),
    )[0]  # fmt: skip
    saved = []
    for i in range(layers):
        at = f"layers.{i}"
        b.anchors.append(Anchor(key=f"forward:{at}", occurrence=1, op=len(b.ops)))
        squares = pointwise("aten::pow", f"{at}.norm1", (x,), width)
        mean = b.op(
            "aten::mean", at, "forward", near(width), (squares,), (), ((tokens * 4, "mean"),)
        )[0]
        n1 = pointwise("aten::mul", f"{at}.norm1", (x, mean, weights[f"{at}.norm1"]), width)
        q, k, v = (linear(f"{at}.{part}", n1, width) for part in "qkv")
        rq, rk = (
            pointwise("aten::rope", f"{at}.{j}", (t,), width) for j, t in (("q", q), ("k", k))
        )
        att = b.op(
            "aten::sdpa", at, "forward", flops * tokens * hidden, (rq, rk, v), (),
            ((width, f"{at}.sdpa"),),
        )[0]  # fmt: skip
        o = linear(f"{at}.o", att, width)
        x2 = pointwise("aten::add", at, (x, o), width)
        n2 = pointwise("aten::mul", f"{at}.norm2", (x2, weights[f"{at}.norm2"]), width)
        g, u = (linear(f"{at}.{part}", n2, tall) for part in ("gate", "up"))
        s = pointwise("aten::silu", at, (g,), tall)
        m = pointwise("aten::mul", at, (s, u), tall)
        d = linear(f"{at}.down", m, width)
        x3 = pointwise("aten::add", f"{at}.out", (x2, d), width)
        saved.append((x, n1, rq, rk, v, att, x2, n2, g, u, s, m))
        x = x3
    logits = linear("head", x, tokens * vocab * 4)
    if zero_grad == "backward":
        freed_after = len(b.ops)
        b.op("aten::zero", "", "other", 1e3)
    soft = pointwise("aten::log_softmax", "loss", (logits,), tokens * vocab * 4)
    b.anchors.append(Anchor(key="backward:", occurrence=1, op=len(b.ops)))
    grads: dict[str, _Item] = {}

    def linear_back(name: str, x: _Item, dy: _Item, width_in: int) -> _Item:
        weight = flops * weights[name].nbytes / 4
        if name in trained:
            grads[name] = b.op(
                "aten::mm", name, "backward", weight, (x, dy), (),
                ((weights[name].nbytes, f"{name}.grad"),), "gradient",
            )[0]  # fmt: skip
        b.op("aten::t", name, "backward", 1e3)
        return b.op(
            "aten::mm", name, "backward", weight, (dy, weights[name]), (), ((width_in, "dx"),)
        )[0]

    def back(op: str, name: str, reads: tuple[_Item, ...], out: int) -> _Item:
        return b.op(op, name, "backward", near(out), reads, (), ((out, "d" + op),))[0]

    def norm_back(name: str, x: _Item, dy: _Item) -> _Item:
        if name in trained:
            grads[name] = b.op(
                "aten::sum", name, "backward", near(width), (x, dy), (),
                ((weights[name].nbytes, f"{name}.grad"),), "gradient",
            )[0]  # fmt: skip
        return back("aten::norm_backward", name, (x, dy, weights[name]), width)

    dlogits = back("aten::log_softmax_backward", "loss", (soft,), tokens * vocab * 4)
    dx = linear_back("head", x, dlogits, width)
    for i in reversed(range(layers)):
        at = f"layers.{i}"
        x0, n1, rq, rk, v, att, x2, n2, g, u, s, m = saved[i]
        dm = linear_back(f"{at}.down", m, dx, tall)
        ds, du = (back("aten::mul_backward", at, (dm, t), tall) for t in (u, s))
        dg = back("aten::silu_backward", at, (ds, g), tall)
        dn = linear_back(f"{at}.gate", n2, dg, width)
        dn2 = linear_back(f"{at}.up", n2, du, width)
        b.op("aten::add_", at, "backward", near(width), (dn2,), (dn,))
        dx2 = norm_back(f"{at}.norm2", x2, dn)
        b.op("aten::add_", at, "backward", near(width), (dx,), (dx2,))
        datt = linear_back(f"{at}.o", att, dx2, width)
        dq, dk, dv = b.op(
            "aten::sdpa_backward", at, "backward", 2 * flops * tokens * hidden,
            (datt, rq, rk, v), (), ((width, "dq"), (width, "dk"), (width, "dv")),
        )  # fmt: skip
        dn1 = linear_back(f"{at}.q", n1, dq, width)
        for part, grad in (("k", dk), ("v", dv)):
            b.op(
                "aten::add_", at, "backward", near(width),
                (linear_back(f"{at}.{part}", n1, grad, width),), (dn1,),
            )  # fmt: skip
        dx0 = norm_back(f"{at}.norm1", x0, dn1)
        b.op("aten::add_", at, "backward", near(width), (dx2,), (dx0,))
        dx = dx0
    if not frozen:
        grads["embed"] = b.op(
            "aten::embedding_backward", "embed", "backward", near(width), (dx, ids), (),
            ((weights["embed"].nbytes, "embed.grad"),), "gradient",
        )[0]  # fmt: skip
    b.anchors.append(Anchor(key="optimizer:", occurrence=1, op=len(b.ops)))
    for name in trained:
        w, grad, (avg, square) = weights[name], grads[name], states[name]
        cost = near(w.nbytes)
        b.op("aten::mul_", name, "optimizer", cost, (), (w,))
        b.op("aten::lerp_", name, "optimizer", cost, (grad,), (avg,))
        b.op("aten::mul_", name, "optimizer", cost, (), (square,))
        b.op("aten::addcmul_", name, "optimizer", cost, (grad,), (square,))
        denom = b.op("aten::sqrt", name, "optimizer", cost, (square,), (), ((w.nbytes, "denom"),))[
            0
        ]
        b.op("aten::add_", name, "optimizer", cost, (), (denom,))
        b.op("aten::addcdiv_", name, "optimizer", cost, (avg, denom), (w,))
    for name in trained:
        grads[name].death = None
        twins[name].death = -1 if zero_grad == "start" else freed_after
    return b.trace(ideal_s, base_bytes=8 * MIB)


def encoded(on: Trace, *, share: float, bytes_per_s: float = 1e12) -> Trace:
    """The trace with all storages encoded by a codec that is as fast both ways."""
    encoding = Encoding(
        codec="lossless",
        dtype="float32",
        share=share,
        encode_bytes_per_s=bytes_per_s,
        decode_bytes_per_s=bytes_per_s,
    )
    storages = tuple(replace(s, encoding=0) for s in on.storages)
    return replace(on, storages=storages, encodings=(encoding,))
