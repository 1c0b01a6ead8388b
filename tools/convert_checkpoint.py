"""`hiera-video convert-checkpoint`, from a checkout: see hiera_video/commands/convert_checkpoint.py."""

from door import enter

if __name__ == "__main__":
    enter("convert-checkpoint")
