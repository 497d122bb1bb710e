"""``pyflannel doctor``: look at everything that an overlay needs on this node, change nothing, and say what to do.

What is so is gathered once (:mod:`~pyflannel.doctor.facts`); a check is a function of these facts that yields
findings, one file per group. Probes (:mod:`~pyflannel.doctor.probes`) send packets to peers and are judged apart from
being sent. A fact that can't be had is a finding of its own, and the checks that need it are skipped with that reason.
"""

from pyflannel.doctor.examination import GROUPS, examine
from pyflannel.doctor.finding import Finding, Outcome, worst

__all__ = ["GROUPS", "Finding", "Outcome", "examine", "worst"]
