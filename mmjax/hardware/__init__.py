"""Hardware: chips, peak rates, FLOP counts."""
