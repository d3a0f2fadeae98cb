"""Scripts that train with keras_san: one a task."""
