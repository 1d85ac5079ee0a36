"""The short form of the fault campaign (`make faults` is the long one), and that it can fail."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from faults.campaign import FEWEST_IN_A_PHASE, RECIPES, Campaign, Tally
from faults.injected import PHASES
from faults.kinds import KINDS

SCRIPT = Path(__file__).parent / "campaign.py"
# Every source of randomness and state at least once: Muon, an average, fp16's scaler, roll-backs, minutes, SAM.
SHORT = "muon,averaged,fp16,roll-backs,minutes,adaptive sam"


@pytest.mark.slow
def test_F01_to_F45_a_short_campaign_loses_nothing_and_ends_bit_for_bit() -> None:
    command = [sys.executable, str(SCRIPT), "--faults", "120", "--seed", "1", "--recipes", SHORT]
    # Running out of memory takes minutes where others use the machine too: the long form has it.
    command += ["--without", "memory_runs_out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "| **all** |" in done.stdout
    for phase in PHASES:
        assert phase in done.stdout


WITH_A_BUG = """
import sys
import pytest
from faults import campaign, test_seeded_bugs
getattr(test_seeded_bugs, sys.argv.pop(1))(pytest.MonkeyPatch())
campaign.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["optimizer_starts_empty", "data_begins_again", "snapshot_by_reference"])
def test_a_campaign_notices_seeded_bugs(bug: str) -> None:
    command = [sys.executable, "-c", WITH_A_BUG, bug, "--faults", "8", "--recipes", "muon", "--kinds", "killed_a"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    assert "differs ['tensors'" in done.stdout


def bare() -> Campaign:
    """A campaign that has run nothing."""
    campaign = Campaign.__new__(Campaign)
    campaign.tallies, campaign.trouble = {"F01": Tally(trials=9, faults=9, resumed=9, exact=9)}, []
    campaign.phases = Counter(dict.fromkeys(PHASES, FEWEST_IN_A_PHASE))
    return campaign


def test_a_campaign_that_proves_nothing_fails() -> None:
    assert not bare().complaints()
    rare = bare()
    rare.phases["pruning"] -= 1
    assert rare.complaints() == [f"only {FEWEST_IN_A_PHASE - 1} faults while pruning"]
    idle = bare()
    idle.tallies["F02"] = Tally(tried=5)
    assert idle.complaints() == ["never struck: F02"]
    wrong = bare()
    wrong.tallies["F01"].wrong.append("sgd, trial 1: ...")
    assert wrong.complaints() == ["F01: sgd, trial 1: ..."]


def test_every_kind_says_which_fault_of_the_table_it_is() -> None:
    assert all((kind.__doc__ or "").startswith("F") for kind in KINDS)
    assert len({kind.__doc__ for kind in KINDS}) >= 28
    assert len(RECIPES) >= 12
