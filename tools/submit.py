"""`hiera-video submit`: see hiera_video/commands/submit.py."""

from door import enter

if __name__ == "__main__":
    enter("submit")
