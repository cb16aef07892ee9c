"""Optimizers by name, the learning rate over a stage, and the checks that need no TensorFlow.

The optimizers are Keras' own. Added here: a rate per block, weight decay that skips biases and norms, warm-up, and
carrying optimizer state from one stage into the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tlearn.config import Config, Duration, LearningRateConfig, LearningRateSchedule, OptimizerConfig, Stage
from tlearn.errors import Problem, did_you_mean

if TYPE_CHECKING:
    import keras

_ADAM = ("beta_1", "beta_2", "epsilon")
_MUON = ("adam_beta_1", "adam_beta_2", "adam_weight_decay", "adam_lr_ratio", "muon_a", "muon_b", "muon_c")
_FTRL_REGULARIZATION = (
    "l1_regularization_strength",
    "l2_regularization_strength",
    "l2_shrinkage_regularization_strength",
)

# name: (class in keras.optimizers, options of that class alone)
OPTIMIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adadelta": ("Adadelta", ("rho", "epsilon")),
    "adafactor": ("Adafactor", ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")),
    "adagrad": ("Adagrad", ("initial_accumulator_value", "epsilon")),
    "adam": ("Adam", (*_ADAM, "amsgrad")),
    "adamax": ("Adamax", _ADAM),
    "adamw": ("AdamW", (*_ADAM, "amsgrad")),
    "ftrl": ("Ftrl", ("learning_rate_power", "initial_accumulator_value", "beta", *_FTRL_REGULARIZATION)),
    "lamb": ("Lamb", _ADAM),
    "lion": ("Lion", ("beta_1", "beta_2")),
    "muon": ("Muon", (*_MUON, "epsilon", "momentum", "nesterov", "ns_steps", "rms_rate")),
    "nadam": ("Nadam", _ADAM),
    "rmsprop": ("RMSprop", ("rho", "momentum", "epsilon", "centered")),
    "schedule_free_adamw": ("ScheduleFreeAdamW", (*_ADAM, "warmup_steps")),
    "sgd": ("SGD", ("momentum", "nesterov")),
}
# our name of an option every optimizer takes: Keras' name
SHARED = {
    "weight_decay": "weight_decay",
    "clip_norm": "clipnorm",
    "clip_value": "clipvalue",
    "clip_global_norm": "global_clipnorm",
    "accumulate": "gradient_accumulation_steps",
    "ema": "ema_momentum",
}
# what null stands for in an option of a learning rate's schedule
SCHEDULE_DEFAULTS = {"final": 0.0, "power": 1.0, "rate": 0.1}
_NOT_FOR_KERAS = {"name", "learning_rate", "schedule", "block_decay", *SHARED}
# options that make sense below one only: averages and momenta
_BELOW_ONE = ("momentum", "rho", "beta_1", "beta_2", "adam_beta_1", "adam_beta_2")
_NOT_NEGATIVE = ("weight_decay", "adam_weight_decay", "initial_accumulator_value", *_FTRL_REGULARIZATION)
# Keras multiplies averages over rows and columns before it takes the root. Where a channel gets no gradient both are
# epsilon_1, and the product is lost in float32 with the 1e-30 of the paper and of Keras: 0/0, not a number. With 1e-14
# it is held for gradients up to 10^4 (root mean square, measured; 1e-15: 3000); those well above 1e-7 do not feel it.
_ADAFACTOR_EPSILON_1 = 1e-14
# names of variables that weight decay leaves alone: they are few, and shrinking them does not regularise. The last is
# the exponent of GeM, by its whole name; what is matched is that of TensorFlow's variable, "head_pool/p:0"
_NO_DECAY = ["bias", "gamma", "beta", r"(?:^|/)p(?:/replica_\d+)?(?::0)?$"]
# attributes of an optimizer that say how much to decay; the second is Muon's, for what it leaves to Adam
_DECAYS = ("weight_decay", "adam_weight_decay")
# attributes of an optimizer whose variables are not state that the next stage goes on from
_NOT_CARRIED = {"_iterations", "_learning_rate", "_accumulated_gradients", "_trainable_variables", "_variables"}


def stage_optimizer(config: Config, stage: Stage) -> OptimizerConfig:
    """The optimizer a stage really uses.

    A stage that names none has the run's with what the stage sets. One that names its own has that one, and of the
    run's the learning rate and its schedule where it sets none: the options of one optimizer are not those of another.
    """
    own, run = stage.optimizer, config.optimizer
    schedule = _stage_schedule(run.schedule, own.schedule)
    if own.name is not None:
        rate = run.learning_rate if own.learning_rate is None else own.learning_rate
        return dataclasses.replace(own, learning_rate=rate, schedule=schedule)
    unset = OptimizerConfig()
    names = [field.name for field in dataclasses.fields(own)]
    changed = {name: getattr(own, name) for name in names if getattr(own, name) != getattr(unset, name)}
    return dataclasses.replace(run, **{**changed, "schedule": schedule})


def unused_options(config: Config) -> list[str]:
    """Options of the run's optimizer that are set, and that no stage uses since all name their own."""
    stages = [stage.optimizer for stage in config.schedule.stages]
    if not stages or any(own.name is None for own in stages):
        return []
    usual, used = Config().optimizer, set()
    if any(own.learning_rate is None for own in stages):
        used.add("learning_rate")
    if any(own.schedule.name is None for own in stages):
        used.add("schedule")
    given = [each.name for each in dataclasses.fields(usual)]
    return [name for name in given if getattr(config.optimizer, name) != getattr(usual, name) and name not in used]


def _stage_schedule(run: LearningRateConfig, stage: LearningRateConfig) -> LearningRateConfig:
    """A stage that names a schedule has that one; else the run's, with what the stage sets of it."""
    if stage.name is not None:
        return stage
    unset = LearningRateConfig()
    names = [field.name for field in dataclasses.fields(stage)]
    changed = {name: getattr(stage, name) for name in names if getattr(stage, name) != getattr(unset, name)}
    return dataclasses.replace(run, **changed)


def own_options(optimizer: OptimizerConfig) -> dict[str, Any]:
    """The options that belong to one optimizer rather than to all: those that are set, and two defaults of ours."""
    fields = dataclasses.asdict(optimizer)
    options = {key: value for key, value in fields.items() if key not in _NOT_FOR_KERAS and value is not None}
    if optimizer.name == "adafactor":
        options.setdefault("epsilon_1", _ADAFACTOR_EPSILON_1)
    if optimizer.name == "muon" and optimizer.weight_decay is not None:  # Keras' own is of matrices alone
        options.setdefault("adam_weight_decay", optimizer.weight_decay)
    return options


def check_optimizer(optimizer: OptimizerConfig, where: str) -> Iterator[Problem]:
    """What is wrong with an optimizer, without TensorFlow."""
    if optimizer.name not in OPTIMIZERS:
        hint = did_you_mean(str(optimizer.name), OPTIMIZERS)
        yield Problem(f"{where}.name", f"unknown optimizer {optimizer.name!r}", hint)
        return
    _, takes = OPTIMIZERS[optimizer.name]
    for key in own_options(optimizer):
        if key not in takes:
            hint = f"its options: {', '.join((*takes, *SHARED))}"
            yield Problem(f"{where}.{key}", f"{optimizer.name} has no such option", hint)
    rate = optimizer.learning_rate
    if rate is not None and not 0 < rate < 1e3:
        yield Problem(f"{where}.learning_rate", f"must be above 0 and sensible, received {rate}")
    yield from _check_ranges(optimizer, where)
    for key, least in (("final", "0 or more"), ("power", "above 0"), ("rate", "above 0")):
        value = getattr(optimizer.schedule, key)
        if value is not None and not (value >= 0 if key == "final" else value > 0):
            yield Problem(f"{where}.schedule.{key}", f"must be {least}, received {value}")
    yield from check_duration(optimizer.schedule.warmup, f"{where}.schedule.warmup", required=False)
    yield from check_duration(optimizer.schedule.every, f"{where}.schedule.every", required=False)


def _check_ranges(optimizer: OptimizerConfig, where: str) -> Iterator[Problem]:
    clips = [key for key in ("clip_norm", "clip_value", "clip_global_norm") if getattr(optimizer, key) is not None]
    if len(clips) > 1:
        yield Problem(f"{where}.{clips[1]}", f"only one of {', '.join(clips)} can be set")
    for key in clips:
        if getattr(optimizer, key) <= 0:
            yield Problem(f"{where}.{key}", f"must be above 0, received {getattr(optimizer, key)}")
    if optimizer.accumulate is not None and optimizer.accumulate < 1:
        yield Problem(f"{where}.accumulate", f"must be 1 or more, received {optimizer.accumulate}")
    if optimizer.ema is not None and not 0 < optimizer.ema < 1:
        yield Problem(f"{where}.ema", f"must be between 0 and 1, received {optimizer.ema}", "0.999 is usual")
    for key in _BELOW_ONE:
        value = getattr(optimizer, key)
        if value is not None and not 0 <= value < 1:
            yield Problem(f"{where}.{key}", f"must be 0 or more and below 1, received {value}")
    for key in _NOT_NEGATIVE:
        value = getattr(optimizer, key)
        if value is not None and not value >= 0:
            yield Problem(f"{where}.{key}", f"must be 0 or more, received {value}")
    if optimizer.learning_rate_power is not None and not optimizer.learning_rate_power <= 0:
        yield Problem(f"{where}.learning_rate_power", f"must be 0 or less, received {optimizer.learning_rate_power}")
    if optimizer.block_decay is not None and not 0 < optimizer.block_decay <= 1:
        yield Problem(f"{where}.block_decay", f"must be above 0 and at most 1, received {optimizer.block_decay}")


def check_duration(duration: Duration, where: str, required: bool) -> Iterator[Problem]:
    """A duration has exactly one unit, and is above zero."""
    units = {key: value for key, value in dataclasses.asdict(duration).items() if value is not None}
    if len(units) > 1 or (required and not units):
        names = ", ".join(dataclasses.asdict(duration))
        yield Problem(where, f"needs exactly one of {names}; received {units or 'none'}")
    for key, value in units.items():
        if value <= 0:
            yield Problem(f"{where}.{key}", f"must be above 0, received {value}")


def in_steps(duration: Duration, *, total: int, steps_per_epoch: int, batch_size: int) -> int:
    """A duration in batches; 0 when none is set."""
    if duration.steps is not None:
        return duration.steps
    if duration.epochs is not None:
        return max(1, round(duration.epochs * steps_per_epoch))
    if duration.examples is not None:
        return max(1, -(-duration.examples // batch_size))
    if duration.percent is not None:
        return max(1, round(duration.percent / 100 * total))
    return 0


def build_optimizer(
    optimizer: OptimizerConfig,
    *,
    steps: int,
    steps_per_epoch: int,
    batch_size: int,
    first_iteration: int = 0,
    factors: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Make the Keras optimizer of a stage.

    Args:
        optimizer: a resolved config, with a name.
        steps: length of the stage in batches.
        steps_per_epoch: batches in one pass over the training images.
        batch_size: images in a batch.
        first_iteration: what the optimizer's counter starts from, when state is carried over from an earlier stage.
        factors: learning rate of a variable, by its path, as a share of the optimizer's; 1 where absent.
    """
    import keras

    class_name, _ = OPTIMIZERS[str(optimizer.name)]
    kind = getattr(keras.optimizers, class_name)
    shared = {
        theirs: getattr(optimizer, ours) for ours, theirs in SHARED.items() if getattr(optimizer, ours) is not None
    }
    if shared.get("gradient_accumulation_steps") == 1:
        del shared["gradient_accumulation_steps"]
    rate = learning_rate(
        optimizer.schedule,
        peak=optimizer.learning_rate or 1e-3,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        first_iteration=first_iteration,
    )
    made = (_with_factors(kind, factors) if factors else kind)(
        learning_rate=rate, use_ema=optimizer.ema is not None, name=optimizer.name, **own_options(optimizer), **shared
    )
    made.exclude_from_weight_decay(var_names=_NO_DECAY)
    return made


def _with_factors(kind: Any, factors: Mapping[str, float]) -> Any:
    """An optimizer class whose rate differs by variable, for the gradient's step and for weight decay alike.

    Scaling the rate, unlike scaling the gradient, means the same for Adam as for SGD.
    """

    class PerVariableRate(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            # what comes in is TensorFlow's own variable, which has no path
            path = self._trainable_variables[self._get_variable_index(variable)].path
            super().update_step(gradient, variable, learning_rate * factors.get(path, 1.0))

        def _apply_weight_decay(self, variables: Any) -> None:
            by_factor: dict[float, list[Any]] = {}
            for variable in variables:
                by_factor.setdefault(factors.get(variable.path, 1.0), []).append(variable)
            decays = {name: getattr(self, name) for name in _DECAYS if getattr(self, name, None) is not None}
            for factor, members in by_factor.items():
                for name, decay in decays.items():
                    setattr(self, name, decay * factor)  # read while the step is traced
                super()._apply_weight_decay(members)
            for name, decay in decays.items():
                setattr(self, name, decay)

    return PerVariableRate


def learning_rate(
    schedule: LearningRateConfig,
    *,
    peak: float,
    steps: int,
    steps_per_epoch: int,
    batch_size: int,
    first_iteration: int = 0,
) -> Any:
    """The learning rate as a function of the optimizer's iterations: a float, or a Keras schedule."""
    import keras

    schedules = keras.optimizers.schedules
    lengths = {"total": steps, "steps_per_epoch": steps_per_epoch, "batch_size": batch_size}
    warmup = min(in_steps(schedule.warmup, **lengths), steps)
    rest = max(1, steps - warmup)
    every = in_steps(schedule.every, **lengths) or max(1, -(-rest // 3))
    given = {option: getattr(schedule, option) for option in SCHEDULE_DEFAULTS}
    final, power, factor = (SCHEDULE_DEFAULTS[option] if value is None else value for option, value in given.items())
    match schedule.name:
        case LearningRateSchedule.constant | None:
            base: Any = None
        case LearningRateSchedule.cosine:
            base = schedules.CosineDecay(peak, rest, alpha=final)
        case LearningRateSchedule.polynomial:
            base = schedules.PolynomialDecay(peak, rest, end_learning_rate=peak * final, power=power)
        case LearningRateSchedule.exponential:
            base = schedules.ExponentialDecay(peak, every, factor)
        case LearningRateSchedule.step:
            base = schedules.ExponentialDecay(peak, every, factor, staircase=True)
    if base is None and warmup == 0:
        return peak
    return _stage_rate(base, peak, warmup, first_iteration)


def _stage_rate(base: Any, peak: float, warmup: int, first_iteration: int) -> Any:
    """Linear warm-up from zero over ``warmup`` iterations, then ``base`` (None: constant), from an offset on."""
    import keras
    from keras import ops

    class StageRate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            step = ops.cast(step, "float32") - float(first_iteration)
            after = base(ops.maximum(step - float(warmup), 0.0)) if base is not None else ops.cast(peak, "float32")
            if warmup == 0:
                return after
            return ops.where(step < warmup, peak * (step + 1.0) / float(warmup), after)

        def get_config(self) -> dict[str, Any]:
            return {"base": base, "peak": peak, "warmup": warmup, "first_iteration": first_iteration}

    return StageRate()


def start_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Let the averages of a built optimizer (EMA) start at the weights.

    Keras makes them as zeros, and takes the weights in the first update: that of a variable which joins later is over,
    and one that overflows in half precision is left out.
    """
    if optimizer.use_ema:
        trained, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average
        for variable, average in zip(trained, averages, strict=True):
            average.assign(variable)


def carried_iterations(old: keras.optimizers.Optimizer, accumulate: int | None) -> int:
    """What the counter of a stage starts from that goes on from an optimizer.

    It counts batches. What is carried are the updates so far, since Adam's bias correction depends on them, in batches
    of the new stage: each stage begins with an empty accumulation.
    """
    return int(old._iterations) // (old.gradient_accumulation_steps or 1) * (accumulate or 1)


def carry_slots(old: keras.optimizers.Optimizer, new: keras.optimizers.Optimizer) -> None:
    """Copy the state of variables that trained before into a new optimizer of the same kind, already built.

    The count of updates is kept with it: a variable that trains for the first time starts with the bias correction of
    an old one. Gradients that no update came of stay behind.
    """
    theirs = _slots(old)
    for key, slot in _slots(new).items():
        source = theirs.get(key)
        if source is not None and source.shape == slot.shape:
            slot.assign(source)
    new._iterations.assign(carried_iterations(old, new.gradient_accumulation_steps))


def _slots(optimizer: keras.optimizers.Optimizer) -> dict[tuple[str, int | None], keras.Variable]:
    """State by the attribute that holds it, and by the identity of the model's variable; None: all share it.

    Not by its path: Adafactor gives its averages over rows and columns the same one, for all kernels.
    """
    import keras

    trained = [id(variable) for variable in optimizer._trainable_variables]
    found: dict[tuple[str, int | None], keras.Variable] = {}
    for name, value in vars(optimizer).items():
        if name in _NOT_CARRIED:
            continue
        if isinstance(value, keras.Variable):
            found[name, None] = value
        elif isinstance(value, list) and len(value) == len(trained):
            slots = zip(trained, value, strict=True)
            found |= {(name, key): slot for key, slot in slots if isinstance(slot, keras.Variable)}
    return found
