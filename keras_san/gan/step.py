"""The step of a GAN: its passes, updates and means."""

import collections
import typing

import keras
from keras import ops

from keras_san import augmentation as augmentations
from keras_san.checks import after, require
from keras_san.critic_output import CriticOutput
from keras_san.differentiation import (
    input_gradients,
    minimize,
    without_gradients,
)
from keras_san.gan.networks import is_float
from keras_san.kernel_normalization import hold_norms


def _unchanged(images):
    return images


class Batch(typing.NamedTuple):
    """Images of one kind, real or generated.

    Attributes:
        images: Tensor `(batch, ...)`.
        condition: Tensor `(batch, ...)`, or `None`.
        augment: Callable from such images to what the critic is shown.
    """

    images: typing.Any
    condition: typing.Any
    augment: typing.Callable = _unchanged


class Step:
    """Mixed into a model with two networks, trains and measures on a batch.

    See `BaseGAN` for what a kind of GAN and a backend add.
    """

    def step(self, data):
        """One update of the generator, after those of the critic.

        Returns:
            A dict of scalars, the means since the epoch began.
        """
        all_real, all_conditions = self._read(data)
        size = ops.shape(all_real)[0]
        part_size = _at_least_one(size // self.critic_steps)
        for i in range(self.critic_steps):
            # Of fewer images than updates, some are there again.
            start = i * part_size % size
            part = slice(start, start + part_size)
            real, condition = all_real[part], None
            if all_conditions is not None:
                condition = all_conditions[part]
            critic_means = self._critic_step(real, condition)
        generator_means = self._generator_step(real, condition)
        if self.ema is not None:
            self._average()
        return self._report(critic_means, generator_means)

    def measure(self, data):
        """The means of a step without its updates, see `evaluate`."""
        real, condition = self._read(data)
        inputs, fake_condition = self._generator_inputs(real, condition)
        fake = self.generator(inputs, training=False)
        window = self._make_window()
        of_real, of_fake, _ = self._criticize_both(
            Batch(window(real), condition),
            Batch(window(fake), fake_condition),
            training=False,
        )
        _, critic_means = self._critic_objective(of_real, of_fake, condition)
        _, generator_means = self._generator_objective(
            of_real,
            of_fake,
            Batch(real, condition),
            Batch(fake, fake_condition),
            training=False,
        )
        return self._report(critic_means, generator_means)

    def _report(self, critic_means, generator_means):
        values = {**generator_means, **critic_means}
        values["loss"] = critic_means["loss"] + generator_means["loss"]
        for mean in self._means:
            if mean.name in values:
                mean.update_state(values[mean.name])
        return {m.name: m.result() for m in self._means if m.name in values}

    def _read(self, data):
        """The real images of a batch, and their condition."""
        # An uncompiled step gets arrays, which Keras does not mix with tensors.
        data = keras.tree.map_structure(
            lambda x: None if x is None else ops.convert_to_tensor(x), data
        )
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is not None:
            raise ValueError(
                "All images of a GAN have the same weight. Received: "
                f"`sample_weight` or `class_weight`, of shape {weights.shape}"
            )
        for value in (x, y):
            if isinstance(value, (dict, list, tuple)):
                keys = [*value] if isinstance(value, dict) else len(value)
                raise ValueError(
                    "A batch must be images, or a pair of images and their "
                    "condition, as `dataset.map(lambda x: (x['image'], "
                    "x['label']))` makes of a dataset of dicts. Received: "
                    f"a {type(value).__name__} of {keys}"
                )
            if value is not None and getattr(value.shape, "rank", 1) is None:
                raise ValueError(
                    "The number of dimensions of images and conditions must "
                    "be known: say so by `ensure_shape`. Received: shape "
                    f"{value.shape}"
                )
        requirement = self._check_values(x, y)
        x, y = after(requirement, x), after(requirement, y)
        real, condition = self._unpack(x, y)
        if not is_float(real):
            raise ValueError(
                "Images must be floats in the range that the generator has, "
                "as [-1, 1] if it ends in tanh: `images / 127.5 - 1.0`. "
                "Received: images of dtype "
                f"{keras.backend.standardize_dtype(real.dtype)}"
            )
        size = ops.shape(real)[0]
        some = require(
            size >= 1,
            "A device got no image of a batch. Make batches larger, or drop "
            "the remainder: `dataset.batch(n, drop_remainder=True)`. "
            "Received: a batch of images that is empty on a device",
        )
        return after(some, real), condition

    def _check_values(self, x, y):
        """Requires that values of arrays are in range, see `checks.require`."""

    def _state_variables(self):
        """All variables of a step, in the groups that Keras has on JAX."""
        return (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )

    def _all_variables(self):
        return [v for group in self._state_variables() for v in group]

    def _critic_step(self, real, condition):
        inputs, fake_condition = self._generator_inputs(real, condition)
        with without_gradients():
            fake = self.generator(inputs, training=True)
        window = self._make_window()
        real = Batch(window(real), condition, self._augment(real))
        fake = Batch(window(fake), fake_condition, self._augment(real.images))
        share = self._draw_share(real.images)

        def compute_loss():
            of_real, of_fake, layer_losses = self._criticize_both(real, fake)
            loss, means = self._critic_objective(of_real, of_fake, condition)
            loss = loss + layer_losses
            if self.penalties:
                # This pass sees the weights that the others have seen.
                with hold_norms():
                    loss = loss + self._penalize(real, fake, share)
            return loss, means

        means = minimize(
            compute_loss,
            self.critic_optimizer,
            self.critic.trainable_variables,
            self._all_variables(),
        )
        if self.augmentation is not None:
            means = {
                **means,
                **self.augmentation.adapt(
                    self._strength, means, self._size_of_all(real.images)
                ),
            }
        return means

    def _critic_objective(self, of_real, of_fake, condition):
        """The critic's loss, and the means to report."""
        adversarial = _mean(
            map(self.loss_function.critic, of_real.logits, of_fake.logits)
        )
        loss, means = self._critic_loss(adversarial, of_real, condition)
        return loss, {
            "loss": loss,
            "critic_loss": adversarial,
            "real_logit": _mean(map(ops.mean, of_real.logits)),
            "real_sign": _mean(ops.mean(ops.sign(x)) for x in of_real.logits),
            "fake_logit": _mean(map(ops.mean, of_fake.logits)),
            **means,
        }

    def _criticize_both(self, real, fake, training=True):
        """The critic's outputs for both, and the losses of its layers."""
        shown = [batch.augment(batch.images) for batch in (real, fake)]
        conditions = real.condition, fake.condition
        if self.joint:
            size = ops.shape(shown[0])[0]
            both = self._criticize(*_joined(shown, conditions), training)
            of_real, of_fake = (
                CriticOutput(
                    *keras.tree.map_structure(
                        lambda x, part=part: None if x is None else x[part],
                        list(both),
                    )
                )
                for part in (slice(0, size), slice(size, None))
            )
            return of_real, of_fake, _layer_losses(self.critic)
        of_real = self._criticize(shown[0], conditions[0], training)
        layer_losses = _layer_losses(self.critic)
        # The second pass sees the weights that the first has seen.
        with hold_norms():
            of_fake = self._criticize(shown[1], conditions[1], training)
        layer_losses = (layer_losses + _layer_losses(self.critic)) / 2.0
        return of_real, of_fake, layer_losses

    def _draw_share(self, images):
        """A number of [0, 1] for each image, of such a shape, or `None`."""
        if not any(penalty.draws for penalty in self.penalties):
            return None

        def draw(n):
            shape = (n, *(1 for _ in images.shape[1:]))
            return keras.random.uniform(shape, seed=self.seed_generator)

        return self.shard(draw, ops.shape(images)[0])

    def _penalize(self, real, fake, share):
        """The sum of penalties that fall due in this update."""
        due = collections.defaultdict(list)
        for penalty in self.penalties:
            due[penalty.interval].append(penalty)
        total = 0.0
        for interval, chosen in due.items():

            def evaluate(chosen=chosen):
                return self._evaluate_penalties(chosen, real, fake, share)

            if interval == 1:
                total = total + evaluate()
                continue
            step = ops.cast(self.critic_optimizer.iterations, "int32")
            total = total + ops.cond(
                ops.equal(step % interval, 0),
                lambda: interval * evaluate(),
                lambda: ops.zeros((), "float32"),
            )
        return total

    def _evaluate_penalties(self, chosen, real, fake, share):
        images = [ops.cast(x.images, "float32") for x in (real, fake)]
        points = [penalty.points(*images, share) for penalty in chosen]
        batches = [fake if p.of_fake else real for p in chosen]
        conditions = [batch.condition for batch in batches]

        def score(points):
            shown = [b.augment(x) for b, x in zip(batches, points)]
            if self._sees_batch:
                outputs = map(self._criticize, shown, conditions)
            else:
                outputs = [self._criticize(*_joined(shown, conditions))]
            return sum(ops.sum(x) for of in outputs for x in of.logits)

        gradients = input_gradients(score, points, self._all_variables())
        return sum(p(g) for p, g in zip(chosen, gradients))

    def _generator_step(self, real, condition):
        inputs, fake_condition = self._generator_inputs(real, condition)
        window = self._make_window()
        augment = self._augment(real)
        if self._generator_needs_real:
            seen = Batch(window(real), condition, self._augment(real))

        def compute_loss():
            fake = self.generator(inputs, training=True)
            layer_losses = _layer_losses(self.generator)
            shown = Batch(window(fake), fake_condition, augment)
            # The critic as it was trained, and one generator in all passes.
            with hold_norms():
                if self._generator_needs_real:
                    of_real, of_fake, _ = self._criticize_both(seen, shown)
                else:
                    of_real = None
                    of_fake = self._criticize(
                        augment(shown.images), fake_condition
                    )
                loss, means = self._generator_objective(
                    of_real,
                    of_fake,
                    Batch(real, condition),
                    Batch(fake, fake_condition),
                )
            return loss + layer_losses, means

        return minimize(
            compute_loss,
            self.generator_optimizer,
            self.generator.trainable_variables,
            self._all_variables(),
        )

    @property
    def _generator_needs_real(self):
        """`True` if its loss depends on the critic's output of real images."""
        return self.loss_function.relativistic

    def _generator_objective(self, of_real, of_fake, real, fake, training=True):
        """The generator's loss, and the means to report."""
        reals = [None] * len(of_fake.logits)
        if of_real is not None:
            reals = of_real.logits
        adversarial = _mean(
            map(self.loss_function.generator, reals, of_fake.logits)
        )
        loss, means = self._generator_loss(
            adversarial, of_real, of_fake, real, fake, training
        )
        return loss, {"loss": loss, "generator_loss": adversarial, **means}

    def shard(self, make, batch_size):
        """The part of this replica of `make(n)`, drawn for all replicas."""
        return make(batch_size)

    def _size_of_all(self, images):
        """The number of images in the batches of all replicas."""
        return ops.shape(images)[0]

    def _make_window(self):
        """A function from images to the part of them that the critic sees."""
        return _unchanged

    def _augment(self, images):
        """A function that shows so many images, augmented at random."""
        if self.augmentation is None:
            return _unchanged

        def draw(n):
            return keras.random.uniform(
                (n, augmentations.NUM_DRAWS), seed=self.seed_generator
            )

        draws = self.shard(draw, ops.shape(images)[0])
        strength = self.augmentation.strength(self._strength)
        return lambda images: self.augmentation(images, draws, strength)

    def _critic_loss(self, adversarial, of_real, condition):
        """The loss of the critic, and further means to report, by name.

        Args:
            adversarial: Scalar.
            of_real: The `CriticOutput` of real images.
            condition: That of the real images.
        """
        return adversarial, {}

    def _generator_loss(
        self, adversarial, of_real, of_fake, real, fake, training
    ):
        """The loss of the generator, and further means to report, by name.

        Args:
            adversarial: Scalar.
            of_real: The `CriticOutput` of real images, or `None` if the loss
                does not need it.
            of_fake: That of generated images.
            real: `Batch` of whole real images.
            fake: `Batch` of whole generated images.
            training: Boolean, in which mode networks run.
        """
        return adversarial, {}

    def _average(self):
        # At first the average follows fast: it forgets the untrained weights.
        step = ops.cast(self.generator_optimizer.iterations, "float32")
        decay = ops.minimum(self.ema, (1.0 + step) / (10.0 + step))
        for average, weight in zip(
            self.averaged_generator.weights, self.generator.weights
        ):
            value = weight.value
            if keras.backend.is_float_dtype(weight.dtype):
                dtype = keras.backend.result_type(weight.dtype, "float32")
                new, old = (ops.cast(x, dtype) for x in (weight, average))
                value = new + ops.cast(decay, dtype) * (old - new)
            # Else a counter, say, of a normalized layer.
            average.assign(ops.cast(value, weight.dtype))


def _joined(batches, conditions):
    """Several batches as one, and their conditions."""
    if conditions[0] is not None:
        conditions = ops.concatenate(conditions)
    else:
        conditions = None
    dtype = batches[0].dtype
    return ops.concatenate([ops.cast(x, dtype) for x in batches]), conditions


def _layer_losses(network):
    # A layer may have one for each image.
    return sum(ops.sum(loss) for loss in network.losses)


def _at_least_one(size):
    if isinstance(size, int):
        return max(1, size)
    return ops.maximum(1, size)


def _mean(values):
    values = list(values)
    return sum(values) / len(values)
