"""Scores over all subsets of the sequences."""
