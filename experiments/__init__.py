"""Runnable experiments."""

from absl import logging

import datasets  # noqa: F401  (quietens TensorFlow)

logging.set_verbosity(logging.WARNING)
