"""Federated data; importing this first keeps TensorFlow's start quiet."""

import os
import warnings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
