"""`hiera-video convert-checkpoint`: see hiera_video/commands/convert_checkpoint.py."""

from door import enter

if __name__ == "__main__":
    enter("convert-checkpoint")
