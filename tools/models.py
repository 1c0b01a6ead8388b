"""`hiera-video models`: see hiera_video/commands/models.py."""

from door import enter

if __name__ == "__main__":
    enter("models")
