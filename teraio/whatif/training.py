"""From a model's configuration to the Trace of training it on an accelerator that is not here.

In: a model configuration of Hugging Face, batch, sequence, precision, an accelerator's name. Out: a
Trace. Must not know: plans, budgets, tiers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from teraio.errors import ConfigurationError
from teraio.records import Trace
from teraio.whatif.configurations import Config, load_config
from teraio.whatif.costs import Float32Matmul
from teraio.whatif.mixed_precision import MasterAdamW
from teraio.whatif.presets import Accelerator
from teraio.whatif.presets import accelerator as accelerator_named
from teraio.whatif.tracing import trace_iteration

# "fp32" and "tf32": FP32 tensors, with matrix products on plain or matrix cores. "bf16": everything
# in BF16. "bf16-mixed": BF16 weights, gradients and activations, FP32 master weights and moments.
Precision = Literal["fp32", "tf32", "bf16", "bf16-mixed"]
Optimizer = Literal["adamw-fused", "adamw-foreach", "adamw", "sgd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one GPU does in one iteration of training.

    ``batch`` x ``sequence`` tokens pass through the model, ``microbatches`` times before the
    optimizer steps. ``shards``: tensor parallelism over so many GPUs, of which one is traced.
    ``stage``: which part of a pipeline is traced, as (number, of how many), counted from 0; it
    holds as many micro-batches as a pipeline has in flight there (one forward, one backward).
    ``checkpointing``: layers are computed again in backward. ``optimizer_in_backward``: that of
    ``teraio.offload``.
    """

    batch: int
    sequence: int
    precision: Precision = "bf16-mixed"
    optimizer: Optimizer = "adamw-fused"
    microbatches: int = 1
    shards: int = 1
    stage: tuple[int, int] = (0, 1)
    checkpointing: bool = False
    optimizer_in_backward: bool = False


def trace_config(
    config: Config | str | os.PathLike[str],
    job: Job,
    *,
    accelerator: str | Accelerator,
) -> Trace:
    """The Trace of one training iteration of a model, with times simulated for ``accelerator``.

    ``config`` is a name of ``teraio.whatif.model_names()``, the path of a ``config.json``, or its
    content. No GPU is used, nothing is downloaded, and no memory is taken for tensors. Needs the
    transformers package. Ops on lists of tensors run in parts of an eighth of the accelerator's
    memory, as they do in a real run with that budget.

    Raises ConfigurationError for what can't be built.
    """
    _check(job)
    device = accelerator_named(accelerator) if isinstance(accelerator, str) else accelerator
    build = _build(load_config(config), job)
    matmul: Float32Matmul = "tf32" if job.precision == "tf32" else "fp32"
    return trace_iteration(
        build.model,
        build.optimizer,
        build.iteration,
        accelerator=device,
        inputs=build.inputs,
        float32_matmul=matmul,
        optimizer_in_backward=job.optimizer_in_backward,
    )


@dataclass(frozen=True, slots=True)
class _Build:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    iteration: Callable[[], None]
    inputs: Mapping[str, torch.Tensor]


def _check(job: Job) -> None:
    for what in ("batch", "sequence", "microbatches", "shards"):
        if getattr(job, what) < 1:
            raise ConfigurationError(f"{what}={getattr(job, what)}; pass 1 or more.")
    if job.optimizer_in_backward and job.microbatches > 1:
        raise ConfigurationError(
            "with several micro-batches a gradient is complete after the last backward pass only; "
            "take optimizer_in_backward out, or pass microbatches=1."
        )
    number, of = job.stage
    if not 0 <= number < of:
        raise ConfigurationError(
            f"stage={job.stage}: pass (number, of how many), with the number counted from 0."
        )
    for value, kinds, what in (
        (job.precision, Precision, "precision"),
        (job.optimizer, Optimizer, "optimizer"),
    ):
        if value not in get_args(kinds):
            raise ConfigurationError(f"{what}={value!r}; pass one of {', '.join(get_args(kinds))}.")


def _build(config: Config, job: Job) -> _Build:
    model = _model(_part_of(config, job), job)
    model.train()
    optimizer = _optimizer(model, job)
    passes = _whole(model, job) if job.stage[1] == 1 else _stage(model, job)
    number, of = job.stage

    def iteration() -> None:
        optimizer.zero_grad()
        in_flight: deque[torch.Tensor] = deque()
        for _ in range(job.microbatches):
            in_flight.append(passes.forward())
            if len(in_flight) == of - number:
                passes.backward(in_flight.popleft())
        while in_flight:
            passes.backward(in_flight.popleft())
        optimizer.step()

    return _Build(model, optimizer, iteration, passes.inputs)


# ---------------------------------------------------------------- models


def _model(config: Config, job: Job) -> torch.nn.Module:
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in ("architectures", "model_type"):
        if not settings.get(key):
            raise ConfigurationError(
                f"this model configuration can't be used: it has no `{key}`. A config.json of "
                "transformers has `model_type` and one class of `architectures`."
            )
    try:
        import transformers
    except ImportError:
        raise ConfigurationError(
            "what-if traces from a model configuration need the transformers package; install it "
            "(pip install transformers)."
        ) from None
    try:
        (architecture,) = settings["architectures"]
        model_class = getattr(transformers, architecture)
        model_type = settings.pop("model_type")
        parsed = transformers.AutoConfig.for_model(model_type, **settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"this model configuration can't be used: {error}. It needs `model_type` and one class "
            f"of `architectures` that transformers {transformers.__version__} knows."
        ) from None
    parsed.use_cache = False
    half = job.precision in ("bf16", "bf16-mixed")
    # Experts run as grouped matrix products: their shapes don't depend on where tokens are routed.
    experts = {"experts_implementation": "grouped_mm"} if _has_experts(settings) else {}
    with torch.device("meta"):
        model: torch.nn.Module = model_class._from_config(
            parsed,
            dtype=torch.bfloat16 if half else torch.float32,
            attn_implementation="sdpa",
            **experts,
        )
    if job.checkpointing:
        model.activation_checkpointing_enable()  # type: ignore[operator]
    return model


def _has_experts(settings: Mapping[str, Any]) -> bool:
    return any("experts" in key for key in settings)


def _part_of(config: Config, job: Job) -> Config:
    """The configuration of what one GPU holds."""
    part = dict(config)
    stages = job.stage[1]
    if stages > 1:
        key = next((key for key in ("num_hidden_layers", "n_layer") if key in part), None)
        if key is None or part.get("is_encoder_decoder") or part[key] % stages:
            raise ConfigurationError(
                f"this model can't be cut into {stages} equal stages: that takes a decoder-only "
                "model whose layers divide by their number."
            )
        part[key] //= stages
    if job.shards > 1:
        part.update(_shard(part, job.shards))
    return part


_SHARDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def _shard(config: Config, shards: int) -> Config:
    if any(key not in config or config[key] % shards for key in _SHARDED):
        raise ConfigurationError(
            f"this model can't be sharded over {shards} GPUs: that takes a configuration with "
            f"{', '.join(_SHARDED)}, each divisible by their number."
        )
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"head_dim": width, **{key: config[key] // shards for key in _SHARDED}}


def _optimizer(model: torch.nn.Module, job: Job) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if job.precision == "bf16-mixed":
        if job.optimizer != "adamw-fused":
            raise ConfigurationError(
                f"optimizer={job.optimizer!r} keeps no FP32 master weights; with "
                "precision='bf16-mixed' pass 'adamw-fused'."
            )
        return MasterAdamW(parameters)
    if job.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3)
    fused, foreach = job.optimizer == "adamw-fused", job.optimizer == "adamw-foreach"
    return torch.optim.AdamW(parameters, fused=fused, foreach=foreach)


# ---------------------------------------------------------------- what is fed


@dataclass(frozen=True, slots=True)
class _Passes:
    """The two halves of training on one micro-batch, and the tensors that they are fed."""

    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], None]
    inputs: dict[str, torch.Tensor]


def _whole(model: torch.nn.Module, job: Job) -> _Passes:
    inputs = {"input_ids": _tokens(job), "labels": _tokens(job)}
    return _Passes(lambda: model(**inputs).loss, torch.autograd.backward, inputs)


def _stage(model: Any, job: Job) -> _Passes:
    """One stage of a pipeline: hidden states come from the stage before, and gradients go back."""
    number, of = job.stage
    first, last = number == 0, number == of - 1
    shape = (job.batch, job.sequence, model.get_input_embeddings().embedding_dim)
    dtype = next(model.parameters()).dtype
    fed, gradient = {}, None
    if first:
        fed["input_ids"] = _tokens(job)
    else:
        model.set_input_embeddings(torch.nn.Identity())
        fed["inputs_embeds"] = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    if last:
        fed["labels"] = _tokens(job)
    else:
        model.set_output_embeddings(torch.nn.Identity())
        gradient = torch.empty(shape, dtype=dtype, device="meta")

    def forward() -> torch.Tensor:
        output: torch.Tensor
        output = model(**fed).loss if last else model.base_model(**fed).last_hidden_state
        return output

    def backward(output: torch.Tensor) -> None:
        if not first:
            fed["inputs_embeds"].grad = None  # the one before has gone to the stage before
        torch.autograd.backward(output, gradient)

    return _Passes(forward, backward, fed if gradient is None else {**fed, "gradient": gradient})


def _tokens(job: Job) -> torch.Tensor:
    return torch.empty(job.batch, job.sequence, dtype=torch.long, device="meta")
