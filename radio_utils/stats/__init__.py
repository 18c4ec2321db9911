"""Statistics: log10 tails, laws of scores, weighted sums, and tests of p-values. Needs numpy and scipy only."""
