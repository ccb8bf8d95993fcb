"""What launch.benchmark measures: one file a benchmark, each with its contestants and whom it compares."""
