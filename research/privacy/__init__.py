"""Accounting of differential privacy, and the noise that a budget asks for."""
