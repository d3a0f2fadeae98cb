"""A measure of how far a critic has overfitted."""

import keras


class Overfitting(keras.callbacks.Callback):
    """Adds `overfitting` to the logs of an epoch with `validation_data`.

    It is 0 where the critic's logits of held-out images are those of the
    images that it is trained on, and 1 where they are those of generated
    images. `fit` of a GAN adds this callback by itself.

    Reference:
        [Karras et al., 2020](https://arxiv.org/abs/2006.06676), Eq. 1, r_v.
    """

    def on_epoch_end(self, epoch, logs=None):
        if logs and "val_real_logit" in logs:
            gap = logs["real_logit"] - logs["val_real_logit"]
            reach = logs["real_logit"] - logs["fake_logit"]
            logs["overfitting"] = gap / reach if reach else 0.0
