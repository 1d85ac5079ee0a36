"""Farthing from Python: what the command does, as functions that return objects.

import farthing
run = farthing.train("default", {"budget.minutes": 2})
run.validation["bits_per_byte"], run.sample("class"), run.dataframe()
"""

from __future__ import annotations

from farthing.api.arms import held_out as held_out
from farthing.api.arms import keep_held_out as keep_held_out
from farthing.api.arms import noise as noise
from farthing.api.arms import train_seeds as train_seeds
from farthing.api.evaluation import ask as ask
from farthing.api.evaluation import keep_tasks as keep_tasks
from farthing.api.evaluation import load_tasks as load_tasks
from farthing.api.harness import ask_harness as ask_harness
from farthing.api.importing import Imported as Imported
from farthing.api.importing import import_huggingface as import_huggingface
from farthing.api.importing import import_llmc as import_llmc
from farthing.api.recipes import Overrides as Overrides
from farthing.api.run import Run as Run
from farthing.api.run import open_run as open_run
from farthing.api.run import runs as runs
from farthing.api.trained import Drawing as Drawing
from farthing.api.trained import Scored as Scored
from farthing.api.trained import TrainedModel as TrainedModel
from farthing.api.trained import Writing as Writing
from farthing.api.trained import open_model as open_model
from farthing.api.verbs import Planned as Planned
from farthing.api.verbs import plan as plan
from farthing.api.verbs import resume as resume
from farthing.api.verbs import train as train
