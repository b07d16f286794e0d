"""Arrays to batches: store, manifest, splits, augmentation, loaders."""
