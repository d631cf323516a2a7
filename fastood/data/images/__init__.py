"""Images in memory or on disk: sets, sources, decoding, resizing, augmentation, noise and digests."""
