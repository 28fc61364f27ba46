"""Phantoms: synthetic cases, made by simulating brains, tumours, MRI contrast and a scanner."""
