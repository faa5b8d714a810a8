"""Measuring: what a request's times are, and how they add up."""
