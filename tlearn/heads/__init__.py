"""Heads: from a feature map to one score for each class.

Importing this package does not import TensorFlow; building a head does.
"""

from __future__ import annotations

from tlearn.heads.head import HEADS, LINEAR, MLP, add_scores, build_head, check_head, register_head

__all__ = ["HEADS", "LINEAR", "MLP", "add_scores", "build_head", "check_head", "register_head"]
