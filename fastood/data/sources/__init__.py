"""Sources of images that options name: folders, lists, arrays and data sets of torchvision and others."""
