"""`hiera-video count-flops`: see hiera_video/commands/count_flops.py."""

from door import enter

if __name__ == "__main__":
    enter("count-flops")
