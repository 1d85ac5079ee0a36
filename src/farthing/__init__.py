"""Farthing spends a fixed budget on the best small GPT it can buy, and proves what bought it.

import farthing
run = farthing.train("default", {"budget.minutes": 2})
print(run.validation["bits_per_byte"], run.sample("class"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farthing.errors import CheckpointError as CheckpointError
from farthing.errors import DataError as DataError
from farthing.errors import DivergedError as DivergedError
from farthing.errors import FarthingError as FarthingError
from farthing.errors import Preempted as Preempted
from farthing.errors import ResourceError as ResourceError
from farthing.errors import RunLockedError as RunLockedError
from farthing.errors import UserError as UserError

if TYPE_CHECKING:
    from farthing.api import Planned as Planned
    from farthing.api import Run as Run
    from farthing.api import import_huggingface as import_huggingface
    from farthing.api import import_llmc as import_llmc
    from farthing.api import noise as noise
    from farthing.api import open_model as open_model
    from farthing.api import open_run as open_run
    from farthing.api import plan as plan
    from farthing.api import resume as resume
    from farthing.api import runs as runs
    from farthing.api import train as train
    from farthing.api import train_seeds as train_seeds

__version__ = "0.1.0"

_FROM_API = frozenset(
    {
        "Planned",
        "Run",
        "import_huggingface",
        "import_llmc",
        "noise",
        "open_model",
        "open_run",
        "plan",
        "resume",
        "runs",
        "train",
        "train_seeds",
    }
)


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and the command's --help must not.
    if name in _FROM_API:
        from farthing import api

        return getattr(api, name)
    raise AttributeError(f"module 'farthing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_API])
