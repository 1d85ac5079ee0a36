"""Any text by the word: total cost over words, as language models are compared on WikiText, and over bytes.

Each document is read from its start, after one separator, in windows that do not overlap but for the last, which is
filled up with what came before: lm-evaluation-harness's rolling log-likelihood. Where a document ends is not predicted,
so that these numbers are a little lower than those of `farthing eval`, which charges for it (docs/yardstick.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farthing.evals.chance import Reading
from farthing.evals.continuations import ContinuationScorer, TextTokenizer


@dataclass(frozen=True)
class Document:
    """A text to be read, and what its cost is divided by.

    Args:
        text: as the model reads it.
        words: how many words count, by the convention of the task.
        bytes: how many bytes, of the text as the data has it.
        words_and_line_ends: the same words with one more for the end of each line, where the task knows that count.
    """

    text: str
    words: int
    bytes: int
    words_and_line_ends: int | None = None


def read(
    scorer: ContinuationScorer,
    tokenizer: TextTokenizer,
    documents: Sequence[Document],
    *,
    report: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Reading], int]:
    """What documents cost, in several units, and how many tokens that was; the number of documents is at least one.

    word_perplexity: exp(nats / words); word_perplexity_eos: with the end of each line as a word, as results
    on WikiText-103 are published; byte_perplexity: exp(nats / bytes); bits_per_byte; token_perplexity: exp(nats /
    tokens), which no other tokenizer can be compared by.
    """
    tokens = tokenizer.encode_batch([document.text for document in documents])
    pairs = [([tokenizer.separator], some) for some in tokens if some]
    nats, count = sum(cost.nats for cost in scorer.costs(pairs, report=report)), sum(map(len, tokens))
    size = sum(document.bytes for document in documents)
    found = {"word_perplexity": _perplexity(nats, sum(document.words for document in documents))}
    ends = [document.words_and_line_ends for document in documents if document.words_and_line_ends is not None]
    if ends:
        found["word_perplexity_eos"] = _perplexity(nats, sum(ends))
    found["byte_perplexity"] = _perplexity(nats, size)
    found["bits_per_byte"] = Reading(_finite(nats / math.log(2) / size) if size else None)
    found["token_perplexity"] = _perplexity(nats, count)
    return found, count


def _perplexity(nats: float, over: int) -> Reading:
    per = nats / over if over else math.nan
    return Reading(math.exp(per) if per < 700 else None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
