"""Foundations that know nothing of rectified flows: files, folders, processes, progress bars, random streams."""
