"""Planning and training: the plan, its stages, the loop, and the run folder."""
