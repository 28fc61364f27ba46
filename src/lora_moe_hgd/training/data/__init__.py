"""From cases to training samples: caches, splits, crops, augmentation."""
