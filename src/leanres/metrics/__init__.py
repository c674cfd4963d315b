"""Metrics of logits against labels, inference, calibration, statistics, errors and Grad-CAM."""
