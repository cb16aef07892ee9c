"""Hostile files; `tools/fuzz.py` starts from them too."""
