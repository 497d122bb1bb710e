"""``pyflannel doctor``: examine everything that an overlay needs on this node, change nothing, and say what to do.

What is so is gathered once (:mod:`~pyflannel.doctor.facts`); a check is a function of these facts that yields
findings, one file per group. Probes (:mod:`~pyflannel.doctor.probes`) send packets to peers and are judged apart from
being sent. A fact that can't be had is a finding of its own, and the checks that need it are skipped with that reason.

Of a backend only what plans is called: to publish, it may make keys or run the operator's commands.
"""

from pyflannel.doctor.examination import GROUPS, examine
from pyflannel.doctor.finding import Finding, Judgement, worst

__all__ = ["GROUPS", "Finding", "Judgement", "examine", "worst"]
