"""`hiera-video duplicates`: see hiera_video/commands/duplicates.py."""

from door import enter

if __name__ == "__main__":
    enter("duplicates")
