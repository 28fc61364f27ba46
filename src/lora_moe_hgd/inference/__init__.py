"""Segment cases and write label maps, reports and pictures."""
