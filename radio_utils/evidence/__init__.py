"""Evidence: the distinct (window, token) pairs of token sequences.

Under the null hypothesis the scores of *distinct* pairs are independent, if the pairs were chosen without the key; the
scores of repeated pairs are equal. So a pair counts once in a test, over all texts (``dedup="window+token"``, the second
variant of Sander et al. 2024); the stricter variant counts a window once.

A pair is packed into one 64-bit word where it fits (k = 2 at any vocabulary up to two million tokens), else into two or
more. Evidence is a sorted set of such words. It merges like a set: shards of a corpus collected apart give the verdict of
the whole, bit for bit, whatever their number and order.
"""

from radio_utils.evidence.checks import (
    DEDUPS,
    GAP,
    Dedup,
    between_gaps,
    check_dedup,
    checked_prompt,
    checked_prompts,
    checked_sequence,
    checked_texts,
    long_pieces,
    without_gaps,
)
from radio_utils.evidence.filters import Filter, checked_filter
from radio_utils.evidence.packing import Packing, Words
from radio_utils.evidence.pairs import (
    Collector,
    Evidence,
    after_hidden,
    after_start,
    collect,
    from_pairs,
    shared_by,
)
from radio_utils.evidence.windows import (
    all_windows,
    first_appearances,
    first_rows,
    following,
    frequent_windows,
    padded,
    rows_among,
    run_begins,
)

__all__ = [
    "DEDUPS",
    "GAP",
    "Collector",
    "Dedup",
    "Evidence",
    "Filter",
    "Packing",
    "Words",
    "after_hidden",
    "after_start",
    "all_windows",
    "between_gaps",
    "check_dedup",
    "checked_filter",
    "checked_prompt",
    "checked_prompts",
    "checked_sequence",
    "checked_texts",
    "collect",
    "first_appearances",
    "first_rows",
    "following",
    "frequent_windows",
    "from_pairs",
    "long_pieces",
    "padded",
    "rows_among",
    "run_begins",
    "shared_by",
    "without_gaps",
]
