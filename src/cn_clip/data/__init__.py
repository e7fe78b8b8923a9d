"""Datasets: the documented formats, checks, loaders, and the sample dataset."""
