"""The price before it is paid (price.py), and what suits this machine (settings.py)."""

from farthing.plan.price import Plan as Plan
from farthing.plan.price import make_plan as make_plan
from farthing.plan.settings import Counts as Counts
from farthing.plan.settings import Settings as Settings
from farthing.plan.settings import Timing as Timing
from farthing.plan.settings import estimate as estimate
from farthing.plan.settings import settle as settle
