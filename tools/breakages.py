"""Shows that the tests can fail: breaks the code by hand, one place at a time.

    python tools/breakages.py

Each breakage is one mistake that somebody might make, in a copy of the
checkout. The tests that should notice it are run there; one that nobody
notices is a hole in them. It takes an hour or two, and presumes that all tests
pass. `--list` tells in a second whether all breakages still fit the code.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import typing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# In blocks, the cheap tests first. "@" names the test files of what follows;
# behind "?" words for `pytest -k`, of tests to try before all others; behind
# "%" the backend, if it is not TensorFlow. A breakage begins with its file and
# what is wrong; lines behind "-" occur there once, and give way to those
# behind "+".
BREAKAGES = r"""
@ tests/test_resizing.py

keras_san/metrics/resizing.py: images that shrink alias
- stretch = max(1.0, 1.0 / scale)
+ stretch = 1.0

keras_san/metrics/resizing.py: halves are rounded to even
- np.clip(np.floor(output + 0.5), 0, 255)
+ np.clip(np.rint(output), 0, 255)

keras_san/metrics/resizing.py: the image is repeated from its other end
- index = np.minimum(index, 2 * n - 1 - index)
+ index = index % n

keras_san/metrics/resizing.py: the first axis always goes first
- for axis in sorted((0, 1), key=lambda axis: scales[axis]):
+ for axis in (0, 1):

@ tests/test_generative.py

keras_san/metrics/generative.py: the covariance is biased
- return self.scatter / (self.count - 1)
+ return self.scatter / self.count

keras_san/metrics/generative.py: batches with other means add no scatter
- self.scatter += centred.T @ centred + share * np.outer(step, step)
+ self.scatter += centred.T @ centred

keras_san/metrics/generative.py: each batch begins at the first split
- split = (self.samples + np.arange(len(p))) % self.splits
+ split = np.arange(len(p)) % self.splits

keras_san/metrics/generative.py: the square root of FID is missing
- trace -= 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
+ trace -= 2.0 * np.maximum(product, 0.0).sum()

keras_san/metrics/generative.py: KID pairs samples with themselves
- return (values.sum() - np.trace(values)) / (n * (n - 1))
+ return values.mean()

keras_san/metrics/generative.py: the standard error of KID is a deviation
- error = values.std(ddof=1) / np.sqrt(blocks)
+ error = values.std(ddof=1)

@ tests/test_image_quality.py

keras_san/metrics/image_quality.py: two borders are left out, not all
- return planes[crop : crop + height, crop : crop + width]
+ return planes[:height, :width]

keras_san/metrics/image_quality.py: luma takes RGB for BGR
- @ [65481, 128553, 24966]
+ @ [24966, 128553, 65481]

keras_san/metrics/image_quality.py: a constant of SSIM is not squared
- c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
+ c1, c2 = (0.01 * 255.0) ** 2, 0.03 * 255.0

keras_san/metrics/image_quality.py: the covariance of NIQE is biased
- covariance = centred.T @ centred / max(1, len(whole) - 1)
+ covariance = centred.T @ centred / max(1, len(whole))

keras_san/metrics/image_quality.py: NIQE looks along one diagonal twice
- for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
+ for shift in ((0, 1), (1, 0), (1, 1), (-1, -1)):

keras_san/metrics/image_quality.py: sharp is what is sharper than the mean
- sharp > sharpness * sharp.max()
+ sharp > sharpness * sharp.mean()

@ tests/test_extractors.py

keras_san/metrics/extractors.py: floats are not rounded to levels
- images = np.rint((images + 1.0) * 127.5)
+ images = (images + 1.0) * 127.5

keras_san/metrics/extractors.py: tiles are transposed
- images = images.transpose(0, 1, 3, 2, 4, 5)
+ images = images.transpose(0, 1, 3, 4, 2, 5)

keras_san/metrics/extractors.py: a softmax passes for logits
- if isinstance(layer, keras.layers.Softmax) or (
+ if isinstance(layer, keras.layers.Softmax) and (

keras_san/metrics/extractors.py: the last batch is lost if it is not full
- for i in range(0, len(images), batch_size)
+ for i in range(0, len(images) - batch_size + 1, batch_size)

@ tests/test_regularizers.py

keras_san/regularizers.py: negative weights are clipped away
- return ops.clip(value, -self.limit, self.limit)
+ return ops.clip(value, 0.0, self.limit)

keras_san/regularizers.py: the norm of a filter is not over its inputs
- axes = tuple(range(len(value.shape) - 1))
+ axes = tuple(range(len(value.shape) - 2))

keras_san/regularizers.py: the wrong matrices are transposed
- if rows < columns:
+ if rows > columns:

@ tests/test_scenes.py

experiments/label_maps.py: edges are marked on one side only
- edges[..., :, :-1] |= across
+ edges[..., :, 1:] |= across

@ tests/test_photographs.py

experiments/photographs.py: the crops of a pair show different places
- y, x, size = (n * self.scale for n in (y, x, size))
+ size = size * self.scale

@ tests/test_data.py

experiments/batches.py: a resumed run gets the first batches again
- dataset = tf.data.Dataset.range(start, stop)
+ dataset = tf.data.Dataset.range(0, stop)

experiments/batches.py: images are mirrored upside down
- x[mirrored] = x[mirrored, :, ::-1]
+ x[mirrored] = x[mirrored, ::-1]

experiments/batches.py: all passes have one order
- rng = np.random.default_rng((self.seed, number))
+ rng = np.random.default_rng(self.seed)

experiments/data.py: white of 16 bits turns black
- array = (np.asarray(image).astype("int64") + 128) // 257
+ array = (np.asarray(image).astype("int64") + 128) // 256

@ tests/test_upscaling.py

experiments/upscaling.py: tiles are kept up to their borders
- cuts = [0, *(start + overlap for start in starts[1:]), length]
+ cuts = [0, *starts[1:], length]

@ tests/test_padding.py

keras_san/padding.py: the odd pixel of a padding goes before
- return tuple((total // 2, total - total // 2) for total in totals)
+ return tuple((total - total // 2, total // 2) for total in totals)

keras_san/padding.py: no gradient comes from repeated pixels
- pieces.insert(0, take(before, before + after) + repeated)
+ pieces.insert(0, take(before, before + after))

keras_san/padding.py: a padding may be wider than the image on one side
- extent >= max(before, after),
+ extent >= min(before, after),

keras_san/padding.py: strided layers pad as if they had no stride
- return before, min(after, max(0, end - before - extent))
+ return before, after

@ tests/test_spectra.py

keras_san/spectra.py: differences of taps count once
- twice = np.where(np.any(lags, axis=1), 2.0, 1.0)
+ twice = np.ones(len(lags))

keras_san/spectra.py: the grid's bound takes half of the distance
- half = rate * sizes / 4.0
+ half = rate * sizes / 8.0

keras_san/spectra.py: the bound on a climb looks at one axis
- climb=float(np.sum(rate * before)) + _ANGLE_SLACK,
+ climb=float(np.max(rate * before)) + _ANGLE_SLACK,

@ tests/test_norms.py

keras_san/norms.py: the dilation is ignored
- taps = spectra.indices(kernel_size) * np.array(dilation_rate, int)
+ taps = spectra.indices(kernel_size)

keras_san/numerics.py: norms are measured in half precision
- return ops.cast(ops.convert_to_tensor(x), "float32")
+ return ops.cast(ops.cast(ops.convert_to_tensor(x), "float16"), "float32")

keras_san/numerics.py: the scale passes over negative numbers
- scale = ops.maximum(largest(ops.abs(x)), TINY)
+ scale = ops.maximum(largest(x), TINY)

@ tests/test_norms.py ? bad_numbers

keras_san/norms.py: NaN outside of the draw is hidden
- return ops.where(ops.all(ops.isfinite(kernel)), norm, float("nan"))
+ return norm

@ tests/test_norms.py ? ratio

keras_san/norms.py: a share of the filters is rounded down
- return max(1, math.ceil(count * ratio - 1e-9))
+ return max(1, math.floor(count * ratio + 1e-9))

@ tests/test_norms.py ? gain

keras_san/norms.py: the gain of a share is upside down
- return harmonic(num_filters) / harmonic(subset)
+ return harmonic(subset) / harmonic(num_filters)

@ tests/test_norms.py ? coarse sparse

keras_san/spectra.py: the coarse grid passes for all frequencies
- factor = float(1.0 / np.prod(np.cos(half) ** 2))
+ factor = 1.0

keras_san/norms.py: filters for sparse signals are not transposed
- filters = ops.swapaxes(filters, -1, -2)
+ filters = ops.reshape(filters, [-1, *filters.shape[:0:-1]])

@ tests/test_norms.py ? rms

keras_san/norms.py: the root mean square is over the taps, too
- square = ops.sum(ops.square(filters)) / filters.shape[1]
+ square = ops.mean(ops.square(filters))

@ tests/test_norms.py ? channels

keras_san/norms.py: channels are counted by amplitude, not energy
- energy = ops.square(inputs)
+ energy = ops.abs(inputs)

@ tests/test_norms.py ? reshape

keras_san/norms.py: the second matrix is the first, transposed
- return fan_in_matrix(ops.transpose(kernel, (*spatial, out, fan_in)))
+ return ops.swapaxes(fan_in_matrix(kernel), -1, -2)

@ tests/test_norms.py ? singular

keras_san/norms.py: the vectors of close singular values are mixed
- _SQUARINGS = 14
+ _SQUARINGS = 5

@ tests/test_norms.py ? iteration

keras_san/norms.py: power iteration forgets its vector at a zero matrix
- u = ops.where(sigma > 0, product / ops.maximum(sigma, TINY), u)
+ u = product / ops.maximum(sigma, TINY)

@ tests/test_norms.py ? operator blocks dense

keras_san/norms.py: the operator norm ignores how a stride folds
- matrices = matmul(phases, filters) / math.sqrt(aliases)
+ matrices = matmul(phases, filters)

keras_san/norms.py: groups of channels are mixed
- matrices = ops.transpose(matrices, (0, 2, 1, 3))
+ matrices = ops.reshape(matrices, (blocks, groups, rows, columns))

@ tests/test_norms.py ? compiled

keras_san/numerics.py: a maximum passes over NaN when compiled
- ops.all(ops.isfinite(values)), ops.max(values), float("nan")
+ ops.any(ops.isfinite(values)), ops.max(values), float("nan")

@ tests/test_normalizers.py ? transposed sparse

keras_san/normalizers.py: the matrix of a transposed kernel is another one
- return [norms.fan_out_matrix(kernel)]
+ return [norms.fan_in_matrix(kernel)]

keras_san/normalizers.py: transposed kernels are sparse in their outputs
- kernel = ops.swapaxes(kernel, -1, -2)
+ kernel = kernel * 1.0

@ tests/test_normalizers.py ? adaptive average

keras_san/normalizers.py: the adaptive gain has no square root
- gain = ops.sqrt(channels) * modulus
+ gain = channels * modulus

keras_san/normalizers.py: the average of channels starts at zero
- average = ops.where(channels == 0.0, found, average)
+ average = ops.where(channels < 0.0, found, average)

@ tests/test_normalizers.py

keras_san/normalizers.py: the gain multiplies the kernel
- norm = norm * gain
+ norm = norm / gain

keras_san/normalizers.py: a share of filters for sparse signals is accepted
- if sparsity > 1 and ratio < 1.0:
+ if sparsity > 1 and ratio > 1.0:

@ tests/test_layers.py ? bad_inputs average

keras_san/normalizers.py: inputs that are not finite spoil the average
- channels = ops.where(ops.isfinite(found), average, channels)
+ channels = average

@ tests/test_layers.py ? transpose adjoint

keras_san/padding.py: transposed layers begin a pixel too early
- p[0] * s + before
+ p[0] * s

@ tests/test_layers.py ? channels

keras_san/geometry.py: channels are looked for in the last axis
- channels_axis=1 if channels_first else -1,
+ channels_axis=-1,

@ tests/test_layers.py ? projected

keras_san/layers.py: a layer that has been built is not projected
- kernel.assign(normalization.project(raw))
+ kernel.assign(raw)

@ tests/test_layers.py ? quantiz assigned policy upper

keras_san/layers.py: Keras quantizes the layer in a wrapper
- layer.quantize = functools.partial(refuse_quantization, self.name)
+ self.refuse_quantization = True

keras_san/layers.py: the layer in a wrapper keeps its own policy
- layer.dtype_policy = policy
+ pass

keras_san/layers.py: only lower case is read as circular
- circular = _lower(padding) == "circular"
+ circular = padding == "circular"

keras_san/kernel_normalization.py: the vectors of assigned kernels stay
- for variable, value in zip(self.vectors, start):
+ for variable, value in zip((), start):

@ tests/test_layers.py ? frozen hold lora

keras_san/layers.py: norms of frozen layers are measured
- training = bool(training) and owner.trainable and layer.trainable
+ training = bool(training)

keras_san/layers.py: nobody refuses LoRA
- if not isinstance(normalization.get_kernel(), keras.Variable):
+ if normalization.get_kernel() is None:

keras_san/kernel_normalization.py: the inner of two contexts ends the outer one
- _hold.active = before
+ _hold.active = False

@ tests/test_fourier.py

keras_san/fourier.py: kernels of even size are off by a pixel
- taps -= (np.array(kernel_size) - 1) // 2
+ taps -= np.array(kernel_size) // 2

keras_san/fourier.py: of two conjugate frequencies one is lost
- back = blocks((2 * cos, -2 * sin), (f, g)).T / len(pixels)
+ back = blocks((cos, -sin), (f, g)).T / len(pixels)

keras_san/padding.py: circular layers lose their activation
- return outputs if layer.activation is None else layer.activation(outputs)
+ return outputs

@ tests/test_attribute_gan.py

keras_san/gan/attribute_gan.py: cross entropies are means over the attributes
- ops.mean(ops.sum(ops.softplus(logits) - attributes * logits, axis=1))
+ ops.mean(ops.softplus(logits) - attributes * logits)

keras_san/gan/attribute_gan.py: images come back with the wrong attributes
- [fake.images, real.condition], training=training
+ [fake.images, fake.condition], training=training

keras_san/gan/attribute_gan.py: all steps exchange the same attributes
- places = keras.random.shuffle(places, seed=self.seed_generator)
+ places = ops.flip(places)

@ tests/test_paired.py ? pixel

keras_san/losses.py: the pixel loss is in another range
- difference = 0.5 * (
+ difference = 1.0 * (

@ tests/test_paired.py ? perceptual

keras_san/losses.py: features are compared behind the activation
- if layer.name in names and not activated:
+ if layer.name in names and activated:

@ tests/test_paired.py

keras_san/gan/paired_gan.py: the adversarial loss has no weight
- loss = self.adversarial_weight * adversarial
+ loss = adversarial

@ tests/test_paired.py ? window

keras_san/gan/paired_gan.py: the critic sees the same window in all updates
- place = keras.random.uniform((2,), seed=self.seed_generator)
+ place = keras.random.uniform((2,), seed=0)

@ tests/test_paired.py ? batch

keras_san/gan/step.py: real and generated images change places
- for part in (slice(0, size), slice(size, None))
+ for part in (slice(size, None), slice(0, size))

@ tests/test_gan.py ? losses

keras_san/losses.py: the hinge of generated images has the wrong sign
- ops.mean(ops.relu(1.0 - real)) + ops.mean(ops.relu(1.0 + fake))
+ ops.mean(ops.relu(1.0 - real)) + ops.mean(ops.relu(1.0 - fake))

@ tests/test_gan.py ? step

keras_san/gan/step.py: all updates of the critic see the same images
- start = i * part_size % size
+ start = 0

keras_san/gan/step.py: what layers lose counts twice
- layer_losses = (layer_losses + _layer_losses(self.critic)) / 2.0
+ layer_losses = layer_losses + _layer_losses(self.critic)

@ tests/test_gan.py ? measured step

keras_san/gan/step.py: the norm is not held between real and generated images
- with hold_norms():
-             of_fake =
+ if True:
+             of_fake =

keras_san/gan/step.py: the generator's step measures the norm
- with hold_norms():
-                 if self._generator_needs_real:
+ if True:
+                 if self._generator_needs_real:

@ tests/test_gan.py ? average generate

keras_san/gan/step.py: the average of weights never follows fast
- decay = ops.minimum(self.ema, (1.0 + step) / (10.0 + step))
+ decay = self.ema

keras_san/gan/step.py: the decay of the average is that of the new weights
- value = new + ops.cast(decay, dtype) * (old - new)
+ value = old + ops.cast(decay, dtype) * (new - old)

keras_san/gan/base.py: images are those of the last generator, not the average
- return self.averaged_generator or self.generator
+ return self.generator

@ tests/test_gan.py ? loaded resume

keras_san/gan/base.py: a resumed training draws its first latents again
- self.seed_generator.state.assign(store["seed"])
+ super().load_own_variables({})

@ tests/test_gan.py ? label conditional class

keras_san/gan/gan.py: a label beyond the last class is accepted
- np.all((labels >= 0) & (labels < self.num_classes))
+ np.all((labels >= 0) & (labels <= self.num_classes))

@ tests/test_penalties.py

keras_san/penalties.py: the square root of the gradient's norm is missing
- norms = ops.sqrt(_squares(gradients) + 1e-12)
+ norms = _squares(gradients)

keras_san/penalties.py: the penalty is not between the images of a pair
- return real + share * (fake - real)
+ return real + share * fake

keras_san/penalties.py: the penalty is not half of its weight
- return 0.5 * self.weight * ops.mean(_squares(gradients))
+ return self.weight * ops.mean(_squares(gradients))

keras_san/gan/step.py: a penalty that is rare is no larger
- lambda: interval * evaluate(),
+ lambda: 1.0 * evaluate(),

keras_san/gan/step.py: a penalty that is rare is never due
- ops.equal(step % interval, 0),
+ ops.equal(step % interval, interval),

@ tests/test_augmentation.py

keras_san/augmentation.py: images are moved the other way
- return ops.cast(ops.equal(moved, places), "float32")
+ return ops.cast(ops.equal(moved - 2 * shift, places), "float32")

keras_san/augmentation.py: what is cut out is as likely to be anywhere
- first = _whole(share, size + 1 - length % 2) - length // 2
+ first = _whole(share, size)

keras_san/augmentation.py: the strength adapts the wrong way
- moved = probability + due * step * ops.sign(sign - self.target)
+ moved = probability - due * step * ops.sign(sign - self.target)

keras_san/gan/step.py: real and generated images are augmented alike
- fake = Batch(window(fake), fake_condition, self._augment(real.images))
+ fake = Batch(window(fake), fake_condition, real.augment)

@ tests/test_gan_model.py

keras_san/gan/optimizers.py: the critic never gets its average
- for optimizer in self.optimizers:
+ for optimizer in self.optimizers[:1]:

keras_san/gan/base.py: to measure moves the random state
- self.seed_generator.state.assign(state)
+ pass

keras_san/callbacks/overfitting.py: overfitting is towards the real images
- reach = logs["real_logit"] - logs["fake_logit"]
+ reach = logs["val_real_logit"] - logs["fake_logit"]

keras_san/gan/networks.py: weights and their averages have the same paths
- config = {**layer.get_config(), "name": f"averaged_{layer.name}"}
+ config = layer.get_config()

@ tests/test_callbacks.py ? diverged

keras_san/gan/base.py: what has diverged replaces the checkpoint
- callbacks = [StopWhenNotFinite(), Overfitting(), *callbacks]
+ callbacks = [*callbacks, StopWhenNotFinite(), Overfitting()]

@ tests/test_gan.py ? precision

keras_san/gan/optimizers.py: half precision has no loss scaling
- if network.compute_dtype == "float16" and not scaled:
+ if network.compute_dtype == "bfloat16" and not scaled:

@ tests/test_geometry.py

keras_san/geometry.py: zero padding is measured as circular padding
- return n if padding in (None, "valid") else n + reach
+ return n

keras_san/geometry.py: the stride of an operator with zero padding
- -(-n // s) * s for n, s in zip(self.spatial_shape, self.strides)
+ n // s * s for n, s in zip(self.spatial_shape, self.strides)

@ tests/test_contract.py

keras_san/geometry.py: the image of a transposed layer is that of its input
- n = n * stride
+ n = n + 0

keras_san/kernel_normalization.py: the gradient of the norm has the wrong sign
- norm = norm + (linear - ops.stop_gradient(linear))
+ norm = norm - (linear - ops.stop_gradient(linear))

@ tests/test_contract.py ? held

keras_san/kernel_normalization.py: the norm is not held
- if training and not norms_held():
+ if training:

@ tests/test_contract.py ? measured

keras_san/kernel_normalization.py: the interval begins one step early
- new = ops.cond(ops.equal(count, 0), measured, lambda: before)
+ new = ops.cond(ops.equal(count, 1), measured, lambda: before)

@ tests/test_contract.py ? replicas

keras_san/kernel_normalization.py: replicas take the mean of their state
- aggregation="only_first_replica",
+ aggregation="mean",

@ tests/test_contract.py ? random

keras_san/kernel_normalization.py: the random state of a file is ignored
- self.seed_generator.state.assign(store["seed"])
+ store["seed"]

@ tests/test_contract.py ? precision

keras_san/kernel_normalization.py: the kernel is read in half precision
- super().__init__(name=name, dtype="float32", autocast=False)
+ super().__init__(name=name, dtype="float16", autocast=True)

@ tests/test_contract.py ? weight zeros_stay

keras_san/kernel_normalization.py: transposed kernels have lengths of inputs
- inputs = rank - 1 if self.geometry.transposed else rank - 2
+ inputs = rank - 2

keras_san/kernel_normalization.py: the lengths of rows are those of columns
- return tuple(range(1, rank))
+ return (0,)

keras_san/kernel_normalization.py: a norm of zero divides
- return ops.sqrt(ops.where(squares == 0.0, 1.0, squares))
+ return ops.sqrt(squares)

@ tests/test_contract.py ? finite

keras_san/kernel_normalization.py: training goes on with a norm of NaN
- self._require_finite(new[0])
+ assert new

@ tests/test_layers.py ? loss

keras_san/layers.py: what layers lose is lost
- owner.add_loss(loss * 1.0)
+ owner.add_loss(loss * 0.0)

keras_san/layers.py: wrapped layers lose their mask
- return self.layer.compute_mask(inputs, previous_mask)
+ return previous_mask

@ tests/test_conversion.py

keras_san/conversion.py: stripped kernels are not divided
- value = divided.get(id(weight), weight)
+ value = weight

keras_san/conversion.py: stripped layers lose their bias
- weights = [w for w in _holder(layer).weights if id(w) not in state]
+ weights = [w for w in _holder(layer).weights if id(w) in divided]

@ tests/test_conversion.py ? normalize

keras_san/conversion.py: normalized models start anew
- _copy_weights(layer, plain, {})
+ assert plain

keras_san/conversion.py: layers of this package start anew
- new.kernel_initializer = lambda shape, dtype: _values(layer.kernel)
+ assert initializer

@ tests/test_conversion.py ? learned

keras_san/conversion.py: other layers forget what they have learned
- new.set_weights(layer.get_weights())
+ new.get_weights()

@ tests/test_callbacks.py ? grid

keras_san/callbacks/samples.py: rows of the grid are columns
- grid = grid.transpose(0, 2, 1, 3, 4)
+ grid = grid.transpose(1, 2, 0, 3, 4)

keras_san/callbacks/samples.py: each row has a class, not each column
- labels = np.arange(rows * columns) % columns % gan.num_classes
+ labels = np.arange(rows * columns) // columns % gan.num_classes

@ tests/test_callbacks.py ? log

keras_san/callbacks/training_log.py: a resumed log loses an epoch
- if r["epoch"] <= epoch]
+ if r["epoch"] < epoch]

@ tests/test_callbacks.py ? images

keras_san/callbacks/evaluation.py: each thousand has the same latents
- seed=(self.seed, index)
+ seed=(self.seed, 0)

keras_san/callbacks/evaluation.py: the first real images are looked at
- chosen = order[:num_images]
+ chosen = np.arange(len(images))[:num_images]

@ tests/test_callbacks.py ? checkpoint

keras_san/callbacks/checkpoint.py: an epoch is trained again after a restart
- os.replace(new, self._path(epoch + 1))
+ os.replace(new, self._path(epoch))

keras_san/callbacks/checkpoint.py: old checkpoints stay
- if epochs != epoch + 1:
+ if epochs > epoch + 1:

@ tests/test_callbacks.py ? chief norms enlarge

keras_san/callbacks/samples.py: all workers write
- if not getattr(self.model, "is_chief", True):
+ if self.model is None:

keras_san/kernel_normalization.py: logged norms are without the gain
- return norm * self.gain()
+ return norm

keras_san/callbacks/image_quality.py: overshooting levels wrap around
- np.clip(np.rint((made + 1.0) * 127.5), 0, 255).astype("uint8")
+ np.rint((made + 1.0) * 127.5).astype("int32").astype("uint8")

@ tests/test_monitor.py

keras_san/callbacks/monitor.py: steps are counted from the wrong one
- self._epoch_began + batch + 1
+ self._epoch_began + batch

keras_san/callbacks/monitor.py: repeated rows are not replaced
- if int(r["step"]) < self._steps]
+ if int(r["step"]) <= self._steps]

keras_san/callbacks/monitor.py: the same warning comes again and again
- if now != self._said and found.verdict != "healthy":
+ if found.verdict != "healthy":

@ tests/test_diagnostics.py ? layer_norms variance

keras_san/geometry.py: the fans of transposed kernels are swapped
- rows, columns = columns, rows
+ rows, columns = rows, columns

@ tests/test_diagnostics.py ? gains shares

keras_san/diagnostics/kernels.py: the share of filters counts the wrong way
- return norm / (kernel.intended_norm() * share)
+ return norm / (kernel.intended_norm() / share)

@ tests/test_diagnostics.py ? record

keras_san/diagnostics/recording.py: what is recorded stays in the layers
- stack.callback(layer.__dict__.pop, "call")
+ stack.callback(layer.__dict__.get, "call")

@ tests/test_diagnostics.py ? growth

keras_san/diagnostics/signals.py: growth is not that of ReLU
- _ratio(_size(y, outer), _size(x, inner)) / math.sqrt(2.0),
+ _ratio(_size(y, outer), _size(x, inner)),

@ tests/test_diagnostics.py ? gradient bound

keras_san/geometry.py: a stride reads fewer pixels than it does
- return math.prod(math.ceil(k / s) for k, s in zip(size, self.strides))
+ return math.prod(k // s for k, s in zip(size, self.strides))

keras_san/diagnostics/gradients.py: gradients are those after a measurement
- with keras.StatelessScope(mapping), hold_norms():
+ with keras.StatelessScope(mapping):

keras_san/diagnostics/bounds.py: the square root of what is shared is missing
- math.sqrt(own[0].geometry.sharing(own[0].variable.shape))
+ own[0].geometry.sharing(own[0].variable.shape)

keras_san/diagnostics/bounds.py: of several ways the last one counts
- behind[id(x)] = behind.get(id(x), 0.0) + found[0] * factor
+ behind[id(x)] = found[0] * factor

@ tests/test_diagnostics.py ? gradient

keras_san/diagnostics/gradients.py: images share the gradient of a mean
- return score(model(inputs, training=False)) * size
+ return score(model(inputs, training=False))

@ tests/test_diagnostics.py ? euler linear

keras_san/differentiation.py: the Hessian meets no direction
- return sum(ops.sum(g * d) for g, d in zip(gradients, directions))
+ return sum(ops.sum(g) for g, d in zip(gradients, directions))

@ tests/test_diagnostics_command.py ? agree slope rows folder noise

keras_san/diagnostics/verdict.py: signals or weights suffice for a verdict
- large = min(signals, kaiming)
+ large = max(signals, kaiming)

keras_san/diagnostics/verdict.py: the distance of images is that of the first
- np.mean(np.linalg.norm(np.diff(images, axis=0), axis=1))
+ np.linalg.norm(images[1] - images[0])

keras_san/diagnostics/report.py: the share of a bound is upside down
- row["gradient_norm"] / bound if bound else math.nan
+ bound / row["gradient_norm"] if bound else math.nan

keras_san/diagnostics/__main__.py: the first images are looked at
- paths = paths[:: max(1, len(paths) // count)][:count]
+ paths = paths[:count]

keras_san/diagnostics/__main__.py: noise rises by the frequency
- np.fft.fft2(white, axes=(1, 2)) / frequency[..., None]
+ np.fft.fft2(white, axes=(1, 2)) * frequency[..., None]

@ tests/test_stargan.py ? numpy

keras_san/networks/stargan.py: all channels are normalized together
- return layers.GroupNormalization(-1, epsilon=1e-5, name=name)(x)
+ return layers.GroupNormalization(1, epsilon=1e-5, name=name)(x)

keras_san/networks/stargan.py: the critic's slope is another one
- x = layers.LeakyReLU(0.01)(x)
+ x = layers.LeakyReLU(0.1)(x)

@ tests/test_stargan.py ? half

keras_san/networks/stargan.py: half precision reaches the images
- precise = keras.config.dtype_policy().variable_dtype
+ precise = keras.config.dtype_policy().compute_dtype

@ tests/test_spade.py ? modulation

keras_san/networks/spade.py: a scale of zero is no longer the identity
- return x * (1.0 + gamma) + beta
+ return x * gamma + beta

@ tests/test_spade.py ? scale

keras_san/networks/spade.py: the border of halved images is dark
- return pool(pad(x)) / pool(pad(present))
+ return pool(pad(x))

@ tests/test_spade.py ? normalized

keras_san/networks/spade.py: the last layer of the critic is not normalized
- normalizer=None if outer and original else normalizer,
+ normalizer=None if outer else normalizer,

@ tests/test_hifigan.py ? folding scales

keras_san/networks/hifigan.py: the last sample is repeated
- x = ops.concatenate([x, ops.flip(x[:, -period:-1], axis=1)], axis=1)
+ x = ops.concatenate([x, ops.flip(x[:, 1 - period :], axis=1)], axis=1)

keras_san/networks/hifigan.py: the means leave out what is outside
- x = layers.AveragePooling1D(4, 2)(layers.ZeroPadding1D(2)(x))
+ x = layers.AveragePooling1D(4, 2, "same")(x)

@ tests/test_networks.py ? residual

keras_san/networks/blocks.py: the critic takes means over the last maps
- return ops.sum(layers.ReLU()(x), axis=(1, 2))
+ return ops.mean(layers.ReLU()(x), axis=(1, 2))

keras_san/networks/blocks.py: the critic cuts images off at zero
- y = layers.ReLU()(x) if preactivate else x
+ y = layers.ReLU()(x)

@ tests/test_networks.py ? counts

keras_san/networks/sngan.py: a layer of the critic has another kernel
- (256, 3, 1),
+ (256, 4, 1),

@ tests/test_networks.py ? initializers

keras_san/networks/sngan.py: the last layer starts as those before a ReLU
- _glorot(1 if last else kernel_size)
+ _glorot(kernel_size)

@ tests/test_networks.py ? labels residual

keras_san/networks/biggan.py: a gain of zero is no longer the identity
- return normalized * (1.0 + embed("gain")) + embed("bias")
+ return normalized * embed("gain") + embed("bias")

@ tests/test_networks.py ? whole

keras_san/networks/biggan.py: the last layer measures at all steps
- shared = ("scale", "update_interval", "form")
+ shared = ("scale", "form")

@ tests/test_networks.py ? initializer

keras_san/networks/blocks.py: layers of one shape start alike
- initializer = initializer.clone()
+ initializer = keras.initializers.get(initializer)

@ tests/test_networks.py ? srgan

keras_san/networks/srgan.py: the border is another one
- x = ops.pad(images, edges, mode="symmetric")
+ x = ops.pad(images, edges, mode="reflect")

keras_san/networks/srgan.py: the hidden layer has no activation
- x = activation(convolution(hidden, 3, "conv_hidden")(x))
+ x = convolution(hidden, 3, "conv_hidden")(x)

@ tests/test_experiments.py ? overwritten

experiments/runs.py: a run overwrites the one before
- elif os.path.exists(self.folder):
+ elif os.path.isfile(self.folder):

@ tests/test_gan.py % jax

keras_san/differentiation.py: what the critic's pass has measured is lost
- for index, value in assigned.items():
+ for index, value in [*assigned.items()][:0]:

keras_san/differentiation.py: nothing has been averaged after a step
- [scope.get_current_value(v) for v in variables]
+ [v.value for v in variables]

@ tests/test_distribution.py ? gans

keras_san/differentiation.py: replicas add up their losses
- loss = optimizer.scale_loss(loss / _num_replicas())
+ loss = optimizer.scale_loss(loss)

keras_san/gan/tensorflow.py: all replicas draw the same
- start = replica.replica_id_in_sync_group * batch_size
+ start = 0
"""


class Breakage(typing.NamedTuple):
    """A mistake in one place.

    Attributes:
        file: String, its path in the checkout.
        what: String, what is wrong.
        old: String, which the file has once.
        new: String, what stands in its place.
        tests: List of strings, the test files that should notice it.
        words: List of strings, of names of tests to try first.
        backend: String, on which the tests run.
    """

    file: str
    what: str
    old: str
    new: str
    tests: list
    words: list
    backend: str


def breakages(text=BREAKAGES):
    """Reads the list above, as a list of `Breakage`."""
    found = []
    for block in text.strip().split("\n\n"):
        if block.startswith("@"):
            block, _, backend = block.partition(" % ")
            tests, _, words = block[1:].partition(" ? ")
            settings = tests.split(), words.split(), backend or "tensorflow"
            continue
        title, *lines = block.split("\n")
        file, _, what = title.partition(": ")
        old, new = (
            "\n".join(line[2:] for line in lines if line[0] == mark)
            for mark in "-+"
        )
        found.append(Breakage(file, what, old, new, *settings))
    return found


def broken(breakage, tree):
    """The content of the file with the mistake in it.

    Raises:
        ValueError: if the code to break is not there, or there twice.
    """
    with open(os.path.join(tree, breakage.file), encoding="utf-8") as file:
        content = file.read()
    count = content.count(breakage.old)
    if count != 1:
        raise ValueError(
            "The code to break must be there once. Received: "
            f"{breakage.old!r}, which {breakage.file} has {count} times"
        )
    return content.replace(breakage.old, breakage.new)


def copy_of(tree, folder):
    """Copies what git knows of a checkout, as it is now."""
    command = ["git", "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run(
        [*command, "--exclude-standard"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if os.path.exists(os.path.join(tree, name)):
            target = os.path.join(folder, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(os.path.join(tree, name), target)


def first_failure(breakage, tree):
    """The first test that fails in a checkout as it is, or `None`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0"]
    command += ["-p", "no:cacheprovider"]
    # Words may match nothing, or tests that notice nothing: then all.
    chosen = [[]]
    if breakage.words:
        chosen.insert(0, ["-k", " or ".join(breakage.words)])
    for choice in chosen:
        result = subprocess.run(
            [*command, *choice, *breakage.tests],
            cwd=tree,
            env={
                **os.environ,
                "KERAS_BACKEND": breakage.backend,
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "TF_NUM_INTRAOP_THREADS": "1",
                # Also for processes that tests start elsewhere.
                "PYTHONPATH": tree,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.M)
        # 1: tests failed. Whatever else ends pytest is no test's merit.
        if result.returncode == 1 and failed:
            return failed[1]
        if result.returncode not in (0, 5):
            print(result.stdout[-2000:], file=sys.stderr)
    return None


def main(argv=None):
    """Breaks the code as the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        An int, how many breakages no test has noticed.

    Raises:
        ValueError: if a breakage does not fit the code.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/breakages.py",
        description=__doc__.splitlines()[0],
    )
    add = parser.add_argument
    add("--only", default="", help="in the file or the description")
    add("--tree", default=ROOT, help="another checkout")
    add("--list", action="store_true", help="list them, and run nothing")
    args = parser.parse_args(argv)

    chosen = [b for b in breakages() if args.only in f"{b.file}: {b.what}"]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = os.path.realpath(folder)
        copy_of(args.tree, folder)
        for breakage in chosen:
            broken(breakage, folder)
        for breakage in chosen:
            line = f"{breakage.file}: {breakage.what}"
            if args.list:
                print(line)
                continue
            path = os.path.join(folder, breakage.file)
            content = broken(breakage, folder)
            os.replace(path, f"{path}.whole")
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
            began = time.monotonic()
            failed = first_failure(breakage, folder)
            seconds = time.monotonic() - began
            os.replace(f"{path}.whole", path)
            missed += failed is None
            verdict = f"caught ({failed})" if failed else "MISSED"
            print(f"{seconds:5.0f} s  {line}: {verdict}", flush=True)
    print(
        f"{len(chosen)} breakages"
        if args.list
        else f"{len(chosen) - missed} of {len(chosen)} caught"
    )
    return missed


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except ValueError as error:
        sys.exit(f"error: {error}")
