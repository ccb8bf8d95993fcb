"""Comparing choices: cells of a grid trained with several seeds, probed, and put into one table."""
