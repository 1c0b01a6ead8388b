"""`hiera-video own`: see hiera_video/commands/own.py."""

from door import enter

if __name__ == "__main__":
    enter("own")
