"""Whole experiments, wired from the rooms below."""
