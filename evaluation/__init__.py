"""Measures predictions: read, score, compare, report. Needs files only: no accelerator, no Ray, no DeepSpeed."""
