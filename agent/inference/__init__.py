"""Policies: bundles of weights, engines that run them, and the queue between their chunks and the arm."""
