"""`hiera-video submit`, from a checkout: see hiera_video/commands/submit.py."""

from door import enter

if __name__ == "__main__":
    enter("submit")
