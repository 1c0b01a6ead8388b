"""`hiera-video run`, from a checkout: see hiera_video/commands/run.py."""

from door import enter

if __name__ == "__main__":
    enter("run")
