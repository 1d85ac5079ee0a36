"""The price before it is paid (price.py), and what suits this machine (settings.py, trial.py, choose.py)."""

from farthing.planning.choose import Choice as Choice
from farthing.planning.choose import checked as checked
from farthing.planning.choose import choose as choose
from farthing.planning.choose import limitations as limitations
from farthing.planning.price import Plan as Plan
from farthing.planning.price import Planned as Planned
from farthing.planning.price import make_plan as make_plan
from farthing.planning.settings import Counts as Counts
from farthing.planning.settings import Settings as Settings
from farthing.planning.settings import TaskSize as TaskSize
from farthing.planning.settings import Timing as Timing
from farthing.planning.settings import estimate as estimate
from farthing.planning.settings import predicted_seconds as predicted_seconds
from farthing.planning.settings import settle as settle
