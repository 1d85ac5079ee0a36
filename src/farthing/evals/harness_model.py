"""A model of ours as lm-evaluation-harness sees one. Imported only where the harness is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from farthing.errors import UserError
from farthing.evals.continuations import ContinuationScorer, Pair
from farthing.evals.forward import Precision
from farthing.evals.samples import TextTokenizer, stream_text
from farthing.model.generate import generate
from farthing.model.gpt import GPT

Report = Callable[[str, float, float], None]
"""called with a stage's name, what is done and the total"""

_WRITTEN = 256
"""tokens that a task which sets no limit may have written: the harness's own number"""


class HarnessTokenizer(TextTokenizer, Protocol):
    """What the harness needs of farthing.data.Tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, special tokens off."""


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of request with a model of ours.

    Texts are cut into tokens as the harness cuts them for a Hugging Face model whose tokenizer adds no special tokens,
    which is what an export is: a context has no separator before it unless it is empty.

    Args:
        model: on `device`.
        tokenizer: the model's.
        device: where the model is.
        precision: number format of the forward pass.
        report: told how far it is.
    """

    def __init__(
        self, model: GPT, tokenizer: HarnessTokenizer, *, device: str, precision: Precision, report: Report
    ) -> None:
        super().__init__()
        self._model, self._texts, self._precision, self._report = model, tokenizer, precision, report
        self._device = device
        self._scorer = ContinuationScorer(model, tokenizer, device=device, precision=precision)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document, and stands before a text that nothing else precedes."""
        return self._texts.separator

    @property
    def max_length(self) -> int:
        """Positions that the model can read together."""
        return self._scorer.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, never a special one."""
        return self._texts.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The logarithm of the probability of each text, every token counted once, in windows that do not overlap."""
        pairs: list[Pair] = []
        owners = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            new = [make_disjoint_window(window) for window in windows]
            pairs += new
            owners += [number] * len(new)
        sums = [0.0] * len(requests)
        for owner, (log_probability, _) in zip(owners, self._answers(pairs), strict=True):
            sums[owner] += log_probability
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string, a separator or the task's limit."""
        written = []
        for number, request in enumerate(requests):
            context, settings = request.args
            written.append(self._write(context, settings, seed=number))
            self._report("writing", number + 1, len(requests))
        return written

    def _write(self, context: str, settings: dict[str, Any], *, seed: int) -> str:
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, default_max_gen_toks=_WRITTEN))
        stops = [stop for stop in handle_stop_sequences(asked["until"], eos=None) if stop]
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        # As much of the context as leaves room for the answer; where the answer alone fills the window, the window moves.
        room = self.max_length - asked["max_gen_toks"]
        ids = generate(
            self._model,
            prompt[-(room if room > 0 else self.max_length) :],
            tokens=asked["max_gen_toks"],
            temperature=asked["temperature"],
            top_k=asked.get("top_k"),
            top_p=asked.get("top_p"),
            seed=seed,
            stop=self._texts.separator,
            separator=self._texts.separator,
            precision=self._precision,
        )
        text = ""
        for piece in stream_text(self._texts, ids):
            text += piece
            if any(stop in text for stop in stops):
                break
        return postprocess_generated_text(text, stops, None)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        for (_context, continuation), _before, after in requests:
            if not after:
                raise UserError(
                    f"the continuation {continuation!r} makes no token of its own after its context with this tokenizer"
                )
        # Of a context of white space alone the harness leaves nothing: that white space is the continuation's.
        return self._answers([(before or [self.prefix_token_id], after) for _, before, after in requests])

    def _answers(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The logarithm of each continuation's probability, and whether the model would have written it."""
        costs = self._scorer.costs(pairs, report=lambda done, total: self._report("scoring", done, total))
        return [(-cost.nats, cost.greedy) for cost in costs]
