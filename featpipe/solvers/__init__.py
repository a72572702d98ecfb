"""Solvers of linear classifiers on plain arrays: they know nothing of heads or images."""
