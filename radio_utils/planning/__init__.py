"""Power planning: how much text a test needs (:mod:`radio_utils.planning.power`), and what a mark will be worth."""

from radio_utils.planning.advice import Access, Advice, advise, entropy_of
from radio_utils.planning.power import (
    PairYield,
    Plan,
    TokensNeeded,
    TooManyPairsError,
    effect_seen,
    pairs_needed,
    power_at,
    simulate_power,
    tokens_needed,
)

__all__ = [
    "Access",
    "Advice",
    "PairYield",
    "Plan",
    "TokensNeeded",
    "TooManyPairsError",
    "advise",
    "effect_seen",
    "entropy_of",
    "pairs_needed",
    "power_at",
    "simulate_power",
    "tokens_needed",
]
