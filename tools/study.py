"""`hiera-video study`: see hiera_video/commands/study.py."""

from door import enter

if __name__ == "__main__":
    enter("study")
