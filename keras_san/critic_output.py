"""The output of a critic, sorted by its meaning."""

import typing


class CriticOutput(typing.NamedTuple):
    """The output of a critic for a batch of images.

    Attributes:
        logits: List of tensors `(batch, ...)`, one per scale.
        features: List of lists of tensors, one per scale.
        class_logits: Tensor `(batch, classes)`, or `None`.
    """

    logits: list
    features: typing.Sequence = ()
    class_logits: typing.Any = None


def of_scales(outputs):
    """Sorts the outputs of a critic that looks at images on several scales.

    Args:
        outputs: Logits, or a list with one entry per scale: logits, or a list
            of features that ends in logits.

    Returns:
        A `CriticOutput`, with empty lists if there are no features.
    """
    scales = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    scales = [
        list(scale) if isinstance(scale, (tuple, list)) else [scale]
        for scale in scales
    ]
    return CriticOutput(
        [scale[-1] for scale in scales], [scale[:-1] for scale in scales]
    )
