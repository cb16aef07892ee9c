"""Is this backbone possible? Answered from the table alone, before TensorFlow is imported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tlearn.backbones.specs import SPECS, BackboneSpec, get_spec
from tlearn.backbones.weights import IMAGENET, check_weights
from tlearn.errors import ConfigError, Problem, did_you_mean

LARGEST_SIZE = 4096


def check_backbone(
    name: str,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    dropout: float | None = None,
    include_top: bool = False,
    classes: int = 1000,
    options: Mapping[str, Any] | None = None,
    where: str = "backbone",
) -> list[Problem]:
    """Everything wrong with the arguments of ``build_backbone``, without building it.

    Args:
        where: config key that messages start with; the others are those of ``build_backbone``.

    Returns:
        Problems in the order of the arguments; empty when the backbone can be built. Whether a weights file fits is
        known only when it is loaded.
    """
    try:
        spec = get_spec(name)
    except ConfigError as error:
        return list(error.problems)

    given = {"alpha": alpha, "depth_multiplier": depth_multiplier, "dropout": dropout}
    problems = _check_size(spec, image_size, where)
    for option, value in given.items():
        problems += _check_option(spec, option, value, where)
    problems += _check_own_options(spec, options or {}, where)
    problems += _check_top(spec, include_top, classes, weights, image_size, where)
    if not problems:
        problems += check_weights(
            weights,
            spec,
            image_size=image_size,
            alpha=alpha,
            depth_multiplier=depth_multiplier,
            include_top=include_top,
            where=f"{where}.weights",
        )
    return problems


def _check_size(spec: BackboneSpec, image_size: int | None, where: str) -> list[Problem]:
    key = f"{where}.image_size"
    if image_size is None:
        return []
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        return [Problem(key, f"must be a whole number of pixels, got {image_size!r}")]
    if image_size < spec.least_size:
        return [
            Problem(
                key,
                f"{image_size} is too small for {spec.name}: its strides need at least {spec.least_size} pixels",
                f"set {key}={spec.least_size} or more (its own size is {spec.image_size})",
            )
        ]
    if image_size > LARGEST_SIZE:
        return [Problem(key, f"{image_size} pixels a side is more than {LARGEST_SIZE}")]
    return []


def _check_option(spec: BackboneSpec, name: str, value: float | None, where: str) -> list[Problem]:
    key = f"{where}.{name}"
    if value is None:
        return []
    option = spec.option(name)
    if option is None:
        takers = [other for other in SPECS if SPECS[other].option(name)]
        return [Problem(key, f"{spec.name} has no {name}", f"leave it null; it exists for {' and '.join(takers)}")]
    whole = name == "depth_multiplier"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return [Problem(key, f"must be a {'whole ' if whole else ''}number, got {value!r}")]
    if name == "dropout" and not 0 <= value < 1:
        return [Problem(key, f"is a rate, 0 or more and below 1, got {value}")]
    if not option.low <= value <= option.high:
        allowed = f"{option.low:g}" if option.low == option.high else f"{option.low:g} to {option.high:g}"
        return [Problem(key, f"{value} is out of range for {spec.name}", f"allowed: {allowed}")]
    return []


def own_options(spec: BackboneSpec) -> list[inspect.Parameter]:
    """What a registered builder takes besides the images; of ours: nothing."""
    return [] if spec.builder is None else list(inspect.signature(spec.builder).parameters.values())[1:]


def _check_own_options(spec: BackboneSpec, options: Mapping[str, Any], where: str) -> list[Problem]:
    """``backbone.options`` against the signature of a registered builder."""
    key = f"{where}.options"
    if spec.builder is None:
        if options:
            return [Problem(key, f"{spec.name} takes none, got {', '.join(options)}", "they are for plugins")]
        return []
    own = own_options(spec)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
        return []
    known = [parameter.name for parameter in own]
    needed = [parameter.name for parameter in own if parameter.default is parameter.empty]
    unknown = [
        Problem(f"{key}.{name}", f"{spec.name} has no such option", did_you_mean(name, known) if known else "")
        for name in options
        if name not in known
    ]
    missing = [Problem(f"{key}.{name}", f"{spec.name} needs it") for name in needed if name not in options]
    return unknown + missing


def _check_top(
    spec: BackboneSpec, include_top: bool, classes: int, weights: str | None, image_size: int | None, where: str
) -> list[Problem]:
    """The network's own ImageNet classifier (Python API only)."""
    if not include_top:
        if classes != 1000:
            return [Problem(f"{where}.classes", "is for include_top=True only", "classes of your own: a head's")]
        return []
    if spec.builder is not None:
        return [Problem(f"{where}.include_top", f"{spec.name} was registered without a classifier")]
    if classes < 1:
        return [Problem(f"{where}.classes", f"must be 1 or more, got {classes}")]
    if weights != IMAGENET:
        return []
    problems = []
    if classes != 1000:
        problems.append(
            Problem(f"{where}.classes", f"the ImageNet classifier has 1000 classes, not {classes}", "use a head")
        )
    sizes = spec.weights_sizes or (spec.image_size,)
    if image_size is not None and image_size not in sizes:
        shown = ", ".join(map(str, sizes))
        problems.append(
            Problem(
                f"{where}.image_size",
                f"the ImageNet classifier of {spec.name} wants {shown} pixels, not {image_size}",
                "leave image_size null, or take the backbone without its top",
            )
        )
    return problems
