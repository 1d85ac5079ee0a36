"""How a run is run: steps, precision, evaluation, checkpoints, samples, limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from farthing.section import NEWER, Section

Every = Annotated[int, Field(ge=1)] | Literal["auto", "end"]
"""A cadence in optimizer steps; auto: the plan decides; end: only when the run ends."""


class Train(Section):
    """The training loop."""

    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 32
    """sequences per optimizer step, over all micro-batches and devices"""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """sequences in one forward pass; auto: the largest that fits, or fewer where that is measured to be faster; the mathematics stays the same"""
    order: Literal["sequential", "shuffled", "random_offset", "one_batch"] = "shuffled"
    """windows in the text's order; in a new order each epoch; the same with a new starting offset each epoch; or the first batch for ever (a debugging aid: the loss must go to zero)"""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """bound on the gradient's norm; none does not clip"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """number format of the forward and backward passes; weights and optimizer stay fp32; auto: the fastest that this machine does well"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: where it is measured to pay within the budget"""
    attention: Literal["auto", "sdpa", "math"] = "auto"
    """how attention is computed: torch's fused kernel or explicit matrix products; the same function either way"""
    weight_gradient: Annotated[Literal["auto", "strided", "copied"], NEWER] = "auto"
    """how the gradient of a weight is multiplied below fp32: with the output's gradient read across its rows, or transposed into a copy first; the same function either way"""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay of an exponential moving average of the weights, which is then what is evaluated and kept; none keeps no average"""
    log_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """steps between flushes of step events to disk; every step is recorded either way"""
    on_divergence: Literal["stop", "skip", "rollback"] = "stop"
    """when the loss is not finite, spikes or runs away: stop; or leave out the batch's update (20 in a row at most; a loss that runs away stops the run); or go back to the last checkpoint, skip the batches since and go on with a smaller rate (3 times at most)"""
    rollback_lr: Annotated[float, Field(gt=0, le=1), NEWER] = 0.5
    """what each roll-back multiplies the learning rate by, for the rest of the run"""
    spike_zscore: Annotated[float, Field(gt=0), NEWER] | None = None
    """a loss or gradient norm this many standard deviations above the mean of the last 128 steps is a spike, and on_divergence says what follows; none looks for no spikes"""
    divergence_factor: Annotated[float, Field(gt=1)] = 3.0
    """the loss has run away when the mean of the last 20 steps exceeds this many times the lowest such mean so far"""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """CPU threads; auto: one for each physical core, or as many as are measured to be faster"""


class Asked(Section):
    """A task that the model is asked while it trains (docs/tasks.md)."""

    task: Literal[
        "hellaswag", "lambada", "arc_easy", "arc_challenge", "piqa", "winogrande", "wikitext", "choices", "perplexity"
    ]
    """its name"""
    path: str = "hub"
    """its questions: a file, a folder that holds it under its usual name, or hub"""
    every: Every = "auto"
    """optimizer steps between two askings, auto: as evaluate.every; one more at the end always, with all questions"""
    limit: Annotated[int, Field(ge=1)] | None = 500
    """questions asked before the end, the same ones each time; none asks all of them"""
    shots: Annotated[int, Field(ge=0)] = 0
    """worked examples before each question"""


class Evaluate(Section):
    """Scoring of the validation text, every token of it, and tasks."""

    every: Every = "auto"
    """optimizer steps between evaluations; one more at the end always"""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """windows scored at once; never changes the score"""
    stride: Annotated[int, Field(ge=1)] | Literal["context_length"] = "context_length"
    """tokens scored per window; fewer than the context gives each token more context, at a higher cost"""
    precision: Literal["fp32", "train"] = "fp32"
    """number format when scoring; fp32 is the one to publish"""
    legacy: Literal["none", "titles"] = "none"
    """titles: also the published titles benchmark's flattering reading, with its coverage (docs/yardstick.md)"""
    references: bool = True
    """at the end, also what xz, zstd and a unigram model make of the same text"""
    tasks: Annotated[list[Asked], NEWER] = []
    """tasks that the model is asked, each a table: [[evaluate.tasks]]"""


class Checkpoint(Section):
    """What is saved, and how much of it is kept."""

    every: Every = "auto"
    """optimizer steps between checkpoints; one more at the end always"""
    keep: Annotated[int, Field(ge=2)] = 2
    """how many of the newest to keep; at least two, so that a damaged one has a predecessor"""
    best: bool = True
    """also keep the one with the lowest validation bits per byte"""
    background: Annotated[bool, NEWER] = True
    """write while training goes on, from a copy in memory (where memory allows it); what is saved is the same"""
    mtbf_hours: Annotated[float, Field(gt=0), NEWER] = 24.0
    """mean time between failures that `every = "auto"` is made for (Young 1974, Daly 2006): often enough that a crash costs little, seldom enough that saving does"""


class Sample(Section):
    """Text written at the end of a run."""

    prompt: str = ""
    """where the text starts; empty: at the start of a document"""
    tokens: Annotated[int, Field(ge=0)] = 200
    """tokens to write; 0 writes none"""
    count: Annotated[int, Field(ge=1)] = 1
    """how many samples"""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """0 always takes the likeliest token"""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """draw from this many likeliest tokens only"""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """draw from the likeliest tokens that together have this probability"""


class Limits(Section):
    """What `plan` refuses."""

    min_megabytes: Annotated[float, Field(gt=0)] | None = None
    """smallest model, in MB (10^6 bytes) of fp32 parameters"""
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    """largest model, in MB (10^6 bytes) of fp32 parameters"""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """memory to plan for, in GiB; none plans for what this machine has"""
