"""From a case's files to its segmentation, volumes and picture."""
