"""Lists, which frames make a clip, crops and augmentation, the data set and its loaders."""
