"""`hiera-video extract-features`: see hiera_video/commands/extract_features.py."""

from door import enter

if __name__ == "__main__":
    enter("extract-features")
