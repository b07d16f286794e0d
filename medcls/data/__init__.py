"""From stored arrays to batches: store, manifest, splits, targets, augmentation, loaders."""
