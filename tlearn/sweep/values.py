"""Values of config keys as command-line overrides."""

from __future__ import annotations

import json
import re
from typing import Any

_BARE = re.compile(r"[A-Za-z_][\w./-]*")
_WORDS = ("true", "false", "null", "nan", "inf", "on", "off", "yes", "no")


def override_text(key: str, value: Any) -> str:
    """``key=value`` as Hydra's grammar reads it, whatever the value holds."""
    return f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A value in Hydra's grammar: text is quoted where it would be taken for something else."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{value_text(key)}:{value_text(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def shown(value: Any) -> str:
    """A value for people: four digits are enough to tell trials apart."""
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    return value if isinstance(value, str) else value_text(value)
