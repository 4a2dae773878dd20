"""Side-by-side benchmarks: each runs its limit or its peers in the same run, and quotes ratios."""
