"""`hiera-video probe`: see hiera_video/commands/probe.py."""

from door import enter

if __name__ == "__main__":
    enter("probe")
