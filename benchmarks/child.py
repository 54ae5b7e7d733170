"""Carries out one Job in this process: ``python -m benchmarks.child JOB`` (JSON).

In: a Job. Out, as lines of JSON on stdout: ``{"step": n}`` after each step, then
``{"outcome": ...}``. Must not know: other runs, tables.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.job import SIZES, Job, Outcome, Size
from benchmarks.text import standard_library_text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The steps that a run with teraio profiles in; a plain run leaves out as many to warm up.
FIRST_STEPS = 2


class RssSampler:
    """The largest resident set of this process between start and stop."""

    def __init__(self, interval_s: float = 0.01) -> None:
        self._interval_s = interval_s
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self.first = self.largest = resident_bytes()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.largest = max(self.largest, resident_bytes())

    def stop(self) -> int:
        """Growth in bytes since the start."""
        self._stop.set()
        self._thread.join()
        return max(self.largest, resident_bytes()) - self.first


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def build_model(size: Size, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.feed_forward,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.sequence,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(dtype)


def batches(size: Size, steps: int) -> Iterator[torch.Tensor]:
    per_step = size.batch * size.sequence
    text = bytearray(standard_library_text(steps * per_step))
    tokens = torch.frombuffer(text, dtype=torch.uint8).to(torch.int64)
    yield from tokens.view(steps, size.batch, size.sequence)


def warm_up() -> None:
    """Loads what torch loads at its first step, so that it does not count as growth of a run."""
    size = Size(hidden=64, layers=1, heads=2, feed_forward=128, batch=1, sequence=16)
    model = build_model(size, torch.float32)
    train(model, batches(size, 2), lambda step: None)


def train(
    model: LlamaForCausalLM, data: Iterator[torch.Tensor], on_step: Callable[[int], None]
) -> tuple[list[float], list[float]]:
    """Losses and wall seconds of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses, seconds = [], []
    for step, batch in enumerate(data):
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        on_step(step)
    return losses, seconds


def parameters_digest(model: torch.nn.Module, offloaded: bool) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        with _in_memory(parameter, offloaded):
            digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _in_memory(parameter: torch.Tensor, offloaded: bool):  # type: ignore[no-untyped-def]
    if not offloaded:
        return nullcontext()
    import teraio

    return teraio.resident(parameter)


def run(job: Job, on_step: Callable[[int], None]) -> Outcome:
    torch.set_num_threads(job.threads)
    size = SIZES[job.size]
    offloaded = job.budget_bytes is not None
    warm_up()
    rss = RssSampler()
    model = build_model(size, DTYPES[job.dtype])
    if offloaded:
        import teraio

        teraio.offload(model, memory_budget=job.budget_bytes, ssd=list(job.ssd) or None)
    losses, seconds = train(model, batches(size, job.steps), on_step)
    growth = rss.stop()
    return Outcome(
        losses=tuple(losses),
        parameters_sha256=parameters_digest(model, offloaded),
        seconds=tuple(seconds),
        rss_growth_bytes=growth,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **(_figures(model) if offloaded else _plain_figures(len(losses))),
    )


def _plain_figures(steps: int) -> dict[str, object]:
    return {"planned": tuple(step >= min(FIRST_STEPS, steps - 1) for step in range(steps))}


def _figures(model: torch.nn.Module) -> dict[str, object]:
    import teraio

    report = teraio.report(model)
    steps = report.steps
    columns = ("peak_bytes", "read_bytes", "written_bytes", "stall_s", "drift_ops", "ops")
    return {
        "planned": tuple(step.phase == "run" for step in steps),
        **{name: tuple(getattr(step, name) for step in steps) for name in columns},
        "predicted_s": report.predicted_s,
        "ideal_s": report.ideal_s,
        "bound_s": report.bound_s,
    }


def main() -> None:
    fields = json.loads(sys.argv[1])
    job = Job(**{**fields, "ssd": tuple(fields["ssd"])})
    outcome = run(job, lambda step: print(json.dumps({"step": step}), flush=True))
    print(json.dumps({"outcome": asdict(outcome)}), flush=True)


if __name__ == "__main__":
    main()
