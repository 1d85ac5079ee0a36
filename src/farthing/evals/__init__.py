"""Honest measurement: what a text costs a model, and that cost in the units people compare by (docs/yardstick.md)."""

from farthing.evals.legacy import LegacyTitles as LegacyTitles
from farthing.evals.legacy import legacy_titles as legacy_titles
from farthing.evals.references import references as references
from farthing.evals.samples import TextSample as TextSample
from farthing.evals.samples import continue_text as continue_text
from farthing.evals.samples import stream_text as stream_text
from farthing.evals.samples import write_samples as write_samples
from farthing.evals.scorer import Score as Score
from farthing.evals.scorer import score as score
from farthing.evals.yardstick import YARDSTICK_VERSION as YARDSTICK_VERSION
from farthing.evals.yardstick import evaluate as evaluate
from farthing.evals.yardstick import yardsticks as yardsticks
