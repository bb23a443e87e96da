"""The claims ledger: what the paper says, what was measured, and the verdict of the rule in the ledger.

``book/claims.yml`` lists the claims. Below the figure that shows a claim, a notebook calls
``claims.check("c13", measured=[...], seeds=[...], control=[...], experiment=...)``, which prints one line and leaves a
JSON record under ``runs/<preset>/claims/``. The results page of the book is made from these records, and from those in
``book/records/<preset>/`` for scales that were run elsewhere.
"""

from rfpp.claims.entries import Amendment, Claim, Rule, Terms, check_lock, ledger, lock, locked
from rfpp.claims.records import DECIDED, Record, check, corrected, lost, out_of_scope, records, scales, skip
from rfpp.claims.statistics import (
    CONFIDENCE,
    Verdict,
    holm,
    interval,
    judge,
    p_value,
    seeds_needed,
    survives,
    verdict,
    visible_effect,
)

__all__ = [
    "CONFIDENCE", "DECIDED", "Amendment", "Claim", "Record", "Rule", "Terms", "Verdict", "check", "check_lock",
    "corrected", "holm", "interval", "judge", "ledger", "lock", "locked", "lost", "out_of_scope", "p_value", "records",
    "scales", "seeds_needed", "skip", "survives", "verdict", "visible_effect",
]  # fmt: skip
