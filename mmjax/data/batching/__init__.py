"""Which examples a batch has, and where in it they lie."""
