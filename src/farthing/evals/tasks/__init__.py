"""The tasks that are built in, each a small file, and what is done with one: load its questions, score a model by it."""

from farthing.evals.tasks.scoring import Loaded as Loaded
from farthing.evals.tasks.scoring import Scored as Scored
from farthing.evals.tasks.scoring import load as load
from farthing.evals.tasks.scoring import score as score
from farthing.evals.tasks.table import TASKS as TASKS
from farthing.evals.tasks.table import find_task as find_task
from farthing.evals.tasks.task import Task as Task
