"""Runnable experiments; importing this quietens what TensorFlow prints."""

import os
import warnings

from absl import logging

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
logging.set_verbosity(logging.WARNING)
