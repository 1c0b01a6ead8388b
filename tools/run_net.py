"""`hiera-video run`: see hiera_video/commands/run.py."""

from door import enter

if __name__ == "__main__":
    enter("run")
