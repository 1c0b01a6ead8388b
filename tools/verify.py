"""`hiera-video verify`: see hiera_video/commands/verify.py."""

from door import enter

if __name__ == "__main__":
    enter("verify")
