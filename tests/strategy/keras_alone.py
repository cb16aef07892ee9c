"""What Keras itself does under a strategy, in a process with two CPUs: prints what ``distribution.py`` works around.

python keras_alone.py             on two devices
TF_CONFIG=... python keras_alone.py    as a worker, ``fit``
"""

import json
import os

import keras
import numpy as np
import tensorflow as tf


def made(**options: object) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(1.0, **options), "mse")
    return model


IMAGES, TARGETS = np.array([[1, 0], [2, 0], [3, 1]], np.float32), np.zeros((3, 1), np.float32)


def step_of(strategy: tf.distribute.Strategy | None, **options: object) -> list[float] | str:
    """The weights after one training step of Keras on a batch of three; or what it ends in."""
    if strategy is None:
        model = made(**options)
        model.train_step((IMAGES, TARGETS))
        return model.get_weights()[0].ravel().tolist()
    with strategy.scope():
        model = made(**options)

    def share(context: tf.distribute.ReplicaContext) -> tuple[int, int]:
        return ((0, 2), (2, 3))[int(tf.get_static_value(context.replica_id_in_sync_group))]

    @tf.function
    def step() -> None:
        def replica() -> None:
            first, stop = share(tf.distribute.get_replica_context())
            model.train_step((IMAGES[first:stop], TARGETS[first:stop]))

        strategy.run(replica)

    try:
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
        step()
    except Exception as error:
        return str(error)
    return model.get_weights()[0].ravel().tolist()


if "TF_CONFIG" in os.environ:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = made()
    try:
        model.fit(tf.data.Dataset.from_tensor_slices((IMAGES, TARGETS)).batch(1), verbose=0)
        said = "trained"
    except Exception as error:
        said = str(error)
    print(json.dumps({"fit": said[-300:]}), flush=True)
    os._exit(0)  # who fails first would wait for the other one

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(
    json.dumps(
        {
            "plain": [step_of(None), step_of(mirrored)],
            "clipped": [step_of(None, global_clipnorm=0.5), step_of(mirrored, global_clipnorm=0.5)],
            "accumulated": step_of(mirrored, gradient_accumulation_steps=2),
        }
    )
)
