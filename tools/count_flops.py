"""`hiera-video count-flops`, from a checkout: see hiera_video/commands/count_flops.py."""

from door import enter

if __name__ == "__main__":
    enter("count-flops")
