"""Sweeps: many runs that search the values of config keys, on Optuna; each trial is a run in a process of its own."""
