"""Sources of images by their names in options: folders, lists, arrays, and data sets of torchvision and others."""
