"""How a GAN trains on TensorFlow."""

import tensorflow as tf

from keras_san.gan.base import BaseGAN


class TensorFlowGAN(BaseGAN):
    """Gradients by tape, replicas by `tf.distribute`."""

    def train_step(self, data):
        return self.step(data)

    def minimize(self, compute_loss, network, optimizer):
        variables = network.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            loss, extra = compute_loss()
            # Optimizers add up the gradients of all replicas.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return extra

    def input_gradient(self, function, images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value = function(images)
        return tape.gradient(value, images)

    def shard(self, make, batch_size):
        replica = tf.distribute.get_replica_context()
        count = replica.num_replicas_in_sync
        if count == 1:
            return make(batch_size)
        # Replicas share their random state, and so would draw the same. This
        # way they also draw what one device would for the whole batch.
        start = replica.replica_id_in_sync_group * batch_size
        return make(batch_size * count)[start : start + batch_size]
