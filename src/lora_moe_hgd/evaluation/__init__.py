"""Scores of segmentations over all subsets of the sequences."""
